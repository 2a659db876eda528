-- Find the subscriptions with deliveries, and when the first delivery of each is due.
--   $1 earliest due time to look at, but for what was redriven; null: all
--
-- While an old transaction is open, the index keeps entries of deliveries that were settled long
-- ago; $1 skips them. With $1 each subscription is looked up, because a scan from subscription to
-- subscription would pass all these entries.
-- Without $1, a scan that jumps from subscription to subscription, one index probe for each, also
-- finds deliveries of deleted subscriptions.
with recursive outstanding as (
    (select delivery.subscription_id
       from outbox.deliveries as delivery
      where $1::timestamptz is null
      order by delivery.subscription_id
      limit 1)
    union all
    select (select delivery.subscription_id
              from outbox.deliveries as delivery
             where delivery.subscription_id > outstanding.subscription_id
             order by delivery.subscription_id
             limit 1)
      from outstanding
     where outstanding.subscription_id is not null
),
-- Whether any delivery was redriven by an operator and not claimed since; there is hardly ever one.
asked as materialized (
    select exists (select from outbox.deliveries as delivery
                    -- With a bound on its column the index is used.
                    where delivery.asked and delivery.subscription_id > 0) as any_at_all
),
candidate as (
    select outstanding.subscription_id
      from outstanding
     where outstanding.subscription_id is not null
    union all
    select subscription.id
      from outbox.subscriptions as subscription
     where $1::timestamptz is not null
)
select candidate.subscription_id,
       extract(epoch from least(first.due_at, redriven.due_at) - now())::double precision as due_in,
       now() as now,
       redriven.due_at as asked_due_at
  from candidate
  left join lateral (
       select delivery.due_at
         from outbox.deliveries as delivery
        where delivery.subscription_id = candidate.subscription_id
          and delivery.due_at >= coalesce($1::timestamptz, '-infinity')
        order by delivery.due_at
        limit 1) as first on true
  -- However long ago it fell due: the transaction of the operator may have committed late.
  left join lateral (
       select delivery.due_at
         from outbox.deliveries as delivery
        where (select asked.any_at_all from asked)
          and delivery.subscription_id = candidate.subscription_id
          and delivery.asked
        order by delivery.id desc
        limit 1) as redriven on true
 where first.due_at is not null
    or redriven.due_at is not null
