-- Move the oldest positions of the backlog into pages of this relay: for each subscription, as many
-- as are wanted.
--   $1 subscriptions
--   $2 positions wanted for each
--   $3 smallest backlog id to look at for each
--   $4 whether each gets a page of its own
--   $5 true: claim suspects, which a relay held when it died; false: claim the others
--   $6 lease token
--   $7 length of the lease in seconds
--   $8 this relay
--
-- At most 64 rows are scanned for each subscription. A row of which not all is wanted is cut.
-- Each row of suspects gets a page of its own: when a relay dies, every pair of its page becomes
-- suspect. Pause and state of the subscription are read here too, so that all relays follow them at
-- once. The subscriptions with fewer rows than were asked for of which some stay, because others
-- had locked them, come back without a page.
with room (subscription_id, wanted, since, own) as (
    select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::boolean[])
),
due as materialized (
    select waiting.*, room.wanted, room.own
      from room
      join outbox.subscriptions as subscription
        on subscription.id = room.subscription_id
       and subscription.active
       and subscription.ordering = 'none'
       -- invalid for one relay may be ok for another
       and subscription.state in ('pending', 'ok', 'invalid')
       and not exists (select from outbox.pauses as pause
                        where pause.subscription_id = room.subscription_id
                          and pause.until > now()
                          and pause.asked_at > coalesce(subscription.resumed_at, '-infinity'))
     cross join lateral (
           select backlog.ctid as address, backlog.id, backlog.subscription_id, backlog.positions,
                  backlog.owed_since, backlog.created_from, backlog.created_until, backlog.deaths,
                  backlog.alone, outbox_internal.count_positions(backlog.positions) as size
             from outbox.backlog as backlog
            where backlog.subscription_id = room.subscription_id
              and backlog.is_suspect = $5::boolean
              and backlog.id >= room.since
            order by backlog.id
            limit least(coalesce(room.wanted, 0), 64)
              for update skip locked
           ) as waiting
),
taken as materialized (
    select sized.*, case when sized.before + sized.size <= sized.wanted then sized.positions
                         else outbox_internal.first_positions(sized.positions,
                                                     sized.wanted - sized.before) end as part
      from (select due.*,
                   (sum(due.size) over (partition by due.subscription_id order by due.id)
                    - due.size)::bigint as before
              from due) as sized
     where sized.before < sized.wanted
),
emptied as (
    delete from outbox.backlog as backlog
     where backlog.ctid = any (array(
               select taken.address from taken where taken.before + taken.size <= taken.wanted))
    returning backlog.id
),
cut as (
    update outbox.backlog as backlog
       set positions = backlog.positions - (
               select taken.part from taken where taken.id = backlog.id)
     where backlog.ctid = any (array(
               select taken.address from taken where taken.before + taken.size > taken.wanted))
    returning backlog.id
),
-- Only rows that were really taken: a row that another relay changed after this statement began is
-- no longer at its address.
moved as materialized (
    select emptied.id from emptied
    union all
    select cut.id from cut
),
paged as (
    insert into outbox.pages (
        lease_token, due_at, relay, deaths, alone, created_from, created_until, subscriptions,
        owed, owed_since)
    select $6::uuid, now() + make_interval(secs => $7::double precision), $8::text,
           max(taken.deaths), max(taken.alone),
           min(taken.created_from), max(taken.created_until),
           array_agg(taken.subscription_id order by taken.subscription_id, taken.id),
           array_agg(taken.part order by taken.subscription_id, taken.id),
           array_agg(taken.owed_since order by taken.subscription_id, taken.id)
      from taken
     where taken.id = any (array(select moved.id from moved))
     group by case when $5::boolean then taken.id
                   when taken.own then -taken.subscription_id
                   else 0 end
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
  left join (select due.subscription_id, count(*) as rows
               from due
              group by due.subscription_id) as found
    on found.subscription_id = room.subscription_id
 where coalesce(found.rows, 0) < least(coalesce(room.wanted, 0), 64)
   and exists (select from outbox.backlog as backlog
                where backlog.subscription_id = room.subscription_id
                  and backlog.is_suspect = $5::boolean
                  and backlog.id >= room.since
                  and not backlog.id = any (array(select emptied.id from emptied)))
