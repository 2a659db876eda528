-- Reserve slots of rates: from the time of a slot on, one delivery may begin.
--   $1 organizations; empty: the rate is that of a subscription
--   $2 subscriptions; 0: the rate is that of an organization
--   $3 seconds between two slots
--   $4 slots wanted at most
--
-- Slots that nobody has reserved are kept for half a second, or until the next slot if that is
-- longer. A relay uses a slot within half a second of its time or of its reservation, so none is
-- used more than a second late: that is the burst. Slots are reserved for a second ahead at most.
-- A time that lies further ahead than any relay reserves is of a clock that was set back.
--
-- A row that another relay has locked, or has updated since this statement began, gives nothing
-- now. Returns a row for each rate, in their order: when the first slot is, in seconds from now
-- (null: ask again soon), how many slots were reserved, and the first slots that were free before
-- and are free now.
with wanted as (
    select *
      from unnest($1::text[], $2::bigint[], $3::double precision[], $4::bigint[]) with ordinality
           as rate (organization, subscription_id, spacing, slots, n)
),
held as materialized (
    select wanted.*, pace.next_at,
           extract(epoch from pace.next_at - now())::double precision as ahead
      from wanted
     cross join lateral (
           select one.next_at
             from outbox.paces as one
            where one.organization = wanted.organization
              and one.subscription_id = wanted.subscription_id
            order by one.next_at desc
            limit 1
              for update skip locked
           ) as pace
),
begun as materialized (
    select held.*,
           greatest(case when held.ahead > 2 + 2 * held.spacing then 0 else held.ahead end,
                    held.spacing - greatest(0.5, held.spacing)) as first
      from held
),
sized as materialized (
    select begun.*,
           least(begun.slots,
                 case when begun.first <= 1 then floor((1 - begun.first) / begun.spacing) + 1
                      else 0 end)::bigint as reserved
      from begun
),
taken as (
    update outbox.paces as pace
       set next_at = now() + make_interval(secs => sized.first + sized.reserved * sized.spacing)
      from sized
     where pace.organization = sized.organization
       and pace.subscription_id = sized.subscription_id
       and pace.next_at = sized.next_at
       and sized.reserved > 0
    returning sized.n, pace.next_at
)
select case when taken.n is not null or sized.reserved = 0 then sized.first end as first,
       case when taken.n is not null then sized.reserved else 0 end as reserved,
       sized.next_at as free_before,
       taken.next_at as free_now
  from wanted
  left join sized on sized.n = wanted.n
  left join taken on taken.n = wanted.n
 order by wanted.n
