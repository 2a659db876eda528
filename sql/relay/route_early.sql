-- Route urgent events before their turn, in one commit. The step of the cursor grows, and nothing
-- else of it changes: a relay that read before it, for this or for a routing step, reads again. If
-- another relay was faster, nothing is written and no row is returned.
--   $1 step of the cursor that was read
--   $2 positions of the events   $3 their created_at
--   New rows of deliveries:
--   $4 positions   $5 created_at of the events   $6 subscriptions
--   $7 earliest time of the first attempt; null: now
--   $8 priorities
--
-- Routing passes the events of $2 when it comes to them: advance_cursor.sql.
with moved as (
    update outbox.cursor set step = step + 1 where step = $1::bigint
    returning step
),
early as (
    insert into outbox.routed_early (position, created_at)
    select urgent.position, urgent.created_at
      from moved
     cross join unnest($2::bigint[], $3::timestamptz[]) as urgent (position, created_at)
),
inserted as (
    insert into outbox.deliveries (position, created_at, subscription_id, owed_since, due_at)
    select matched.position,
           matched.created_at,
           matched.subscription_id,
           greatest(coalesce(matched.deliver_after, now()), now()),
           greatest(matched.deliver_after, now() - make_interval(mins => matched.priority))
      from moved
     cross join unnest($4::bigint[], $5::timestamptz[], $6::bigint[], $7::timestamptz[],
                       $8::integer[])
           as matched (position, created_at, subscription_id, deliver_after, priority)
)
select moved.step from moved
