-- What each subscription said of an event so far, by name. A success is known only where the
-- attempt log has it: `settled` is what failed before, and is neither owed nor a dead letter now.
--   $1 id
with event as materialized (
    select coalesce((select found.position from outbox_internal.find_event($1::uuid) as found),
                    (select letter.position from outbox.dead_letters as letter
                      where letter.event_id = $1::uuid limit 1)) as position
),
owed as (
    select one.subscription_id, bool_or(one.is_leased) as is_leased, min(one.due_at) as due_at,
           max(one.attempts) as attempts
      from (select delivery.subscription_id,
                   delivery.lease_token is not null and delivery.due_at > now() as is_leased,
                   case when delivery.lease_token is null
                        then nullif(delivery.due_at, outbox_internal.never()) end as due_at,
                   delivery.attempt as attempts
              from outbox.deliveries as delivery
             where delivery.position = (select event.position from event)
            union all
            select pair.subscription_id, page.due_at > now(), null, 0
              from outbox.pages as page
             cross join lateral outbox_internal.left_of(page) as pair
             where pair.position = (select event.position from event)
            union all
            select backlog.subscription_id, false, null, 0
              from outbox.backlog as backlog
             where backlog.positions @> (select event.position from event)) as one
     group by one.subscription_id
),
letters as (
    select distinct on (letter.subscription_id) letter.*
      from outbox.dead_letters as letter
     where letter.position = (select event.position from event)
     order by letter.subscription_id, letter.id desc
),
attempts as (
    select distinct on (attempt.subscription_id) attempt.*
      from outbox.attempts as attempt
     where attempt.position = (select event.position from event)
       and not attempt.stale
     order by attempt.subscription_id, attempt.at desc
)
select coalesce(subscription.name, letter.subscription, 'deleted') as subscription,
       case when owed.is_leased then 'in_flight'
            when owed.subscription_id is not null then 'waiting'
            when letter.id is not null then 'dead_letter'
            when attempt.outcome in ('delivered', 'superseded') then attempt.outcome
            else 'settled' end as state,
       owed.due_at,
       case when owed.subscription_id is null and letter.id is not null then letter.attempts
            else greatest(attempt.attempt, owed.attempts, 0) end as attempts,
       case when letter.id is not null then letter.reason else attempt.reason end as reason,
       case when letter.id is not null then letter.status else attempt.status end as status,
       case when letter.id is not null then letter.answer else attempt.answer end as answer
  from owed
  full join letters as letter on letter.subscription_id = owed.subscription_id
  full join attempts as attempt
    on attempt.subscription_id = coalesce(owed.subscription_id, letter.subscription_id)
  left join outbox.subscriptions as subscription
    on subscription.id = coalesce(owed.subscription_id, letter.subscription_id,
                                  attempt.subscription_id)
 order by 1;
