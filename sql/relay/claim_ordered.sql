-- Move the first positions of the backlog of ordered subscriptions into pages of this relay.
--   $1 subscriptions
--   $2 positions wanted for each
--   $3 lease tokens of the subscriptions
--   $4 lease token   $5 length of the lease in seconds   $6 this relay
--
-- In the order of positions, whatever the ids: what was given back comes first again. Nothing is
-- skipped: behind a row that somebody has locked nothing is taken. Suspects come alone, each row in
-- a page of its own; others share a page for each subscription. While past events are read for a
-- subscription that has just begun, nothing behind them is taken. The subscriptions of which
-- something stays that may be taken next come back without a page.
with held as materialized (
    select lease.subscription_id
      from outbox.order_leases as lease
     where lease.subscription_id = any ($1::bigint[])
       and lease.lease_token = any ($3::uuid[])
       and lease.due_at > now()
       for share
),
room as materialized (
    select asked.subscription_id, asked.wanted, start.position as past
      from unnest($1::bigint[], $2::bigint[]) as asked (subscription_id, wanted)
      join held on held.subscription_id = asked.subscription_id
      join outbox.subscriptions as subscription
        on subscription.id = asked.subscription_id
       and subscription.active
       -- invalid for one relay may be ok for another
       and subscription.state in ('pending', 'ok', 'invalid')
       and not exists (select from outbox.pauses as pause
                        where pause.subscription_id = asked.subscription_id
                          and pause.until > now()
                          and pause.asked_at > coalesce(subscription.resumed_at, '-infinity'))
      left join outbox.starts as start on start.subscription_id = asked.subscription_id
),
-- One more than are taken: nothing behind its first position is taken either.
first as materialized (
    select waiting.*, room.wanted, room.past
      from room
     cross join lateral (
           select backlog.id, backlog.subscription_id, backlog.positions, backlog.first_position,
                  backlog.owed_since, backlog.created_from, backlog.created_until, backlog.deaths,
                  backlog.alone,
                  row_number() over (order by backlog.first_position, backlog.id) as n,
                  first_value(backlog.deaths)
                      over (order by backlog.first_position, backlog.id) as first_deaths
             from (select one.*
                     from outbox.backlog as one
                    where one.is_ordered
                      and one.subscription_id = room.subscription_id
                      and (room.past is null or one.first_position <= room.past)
                    order by one.first_position, one.id
                    limit least(room.wanted, 64) + 1) as backlog
           ) as waiting
),
free as materialized (
    select backlog.id
      from outbox.backlog as backlog
     where backlog.id = any (array(select first.id from first where first.n <= 64))
       for update skip locked
),
-- Up to the first that is locked or of the other kind.
each as materialized (
    select first.*,
           bool_and((first.deaths > 0) = (first.first_deaths > 0)
                    and first.n <= least(first.wanted, 64)
                    and first.id in (select free.id from free))
               over (partition by first.subscription_id order by first.n) as is_next
      from first
),
-- Rows may overlap: what committed late, and what was given back. PostgreSQL 14 aggregates ranges
-- only, no multiranges.
union_of as materialized (
    select each.subscription_id, range_agg(one.span) as positions
      from each
     cross join lateral unnest(each.positions) as one (span)
     where each.is_next
     group by each.subscription_id
),
-- The position before which all that is wanted lies, and nothing that stays.
bound as materialized (
    select whole.subscription_id,
           upper(outbox_internal.first_positions(
                     whole.positions
                     * int8multirange(int8range(null, whole.stays_from)), whole.wanted)) as upto
      from (select each.subscription_id, max(each.wanted) as wanted, union_of.positions,
                   least(min(each.first_position) filter (where not each.is_next),
                         min(each.past) + 1) as stays_from
              from each
              left join union_of on union_of.subscription_id = each.subscription_id
             group by each.subscription_id, union_of.positions) as whole
),
taken as materialized (
    select each.*, each.positions * int8multirange(int8range(null, bound.upto)) as part
      from each
      join bound on bound.subscription_id = each.subscription_id
     where each.is_next
       and each.first_position < bound.upto
),
emptied as (
    delete from outbox.backlog as backlog
     where backlog.id = any (array(
               select taken.id from taken where taken.part = taken.positions))
    returning backlog.id
),
cut as (
    update outbox.backlog as backlog
       set positions = backlog.positions - (
               select taken.part from taken where taken.id = backlog.id)
     where backlog.id = any (array(
               select taken.id from taken where taken.part <> taken.positions))
    returning backlog.id
),
-- Only rows that were really taken.
moved as materialized (
    select emptied.id from emptied
    union all
    select cut.id from cut
),
paged as (
    insert into outbox.pages (
        lease_token, due_at, relay, deaths, alone, created_from, created_until, subscriptions,
        owed, owed_since)
    select $4::uuid, now() + make_interval(secs => $5::double precision), $6::text,
           max(taken.deaths), max(taken.alone),
           min(taken.created_from), max(taken.created_until),
           array_agg(taken.subscription_id order by taken.n),
           array_agg(taken.part order by taken.n),
           array_agg(taken.owed_since order by taken.n)
      from taken
     where taken.id = any (array(select moved.id from moved))
     group by case when taken.deaths > 0 then taken.id else -taken.subscription_id end
     order by min(taken.n)
    returning id, deaths, alone, created_from, created_until, subscriptions,
              owed::text[] as owed, owed_since
)
select paged.id, paged.deaths, paged.alone, paged.created_from, paged.created_until,
       paged.subscriptions, paged.owed, paged.owed_since,
       '{}' as done, null::bigint as stays
  from paged
union all
select null, null, null, null, null, null, null, null, null, room.subscription_id
  from room
 where exists (select from first
                where first.subscription_id = room.subscription_id
                  and not first.id = any (array(select emptied.id from emptied)))
 order by id nulls last
