-- Which subscriptions have deliveries that are due, and when the next one falls due otherwise.
--   $1 look at due times from here on; null: all
--
-- The bound keeps the scans off index entries of deliveries long settled, which an old transaction may keep alive. With it,
-- each subscription is probed: to walk from one that has deliveries to the next would pass all those entries.
-- Without it, a loose scan also finds what deleted subscriptions were owed: one probe of the index for each that has deliveries.
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
-- What an operator redrove and no relay has tried yet: hardly ever anything.
asked as materialized (
    select exists (select from outbox.deliveries as delivery
                    where delivery.asked and delivery.subscription_id > 0) as any_at_all  -- the bound names the index
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
       extract(epoch from first.due_at - now())::double precision as due_in,
       now() as now,
       case when (select asked.any_at_all from asked)
            then (select delivery.due_at
                    from outbox.deliveries as delivery
                   where delivery.subscription_id = candidate.subscription_id
                     and delivery.asked
                   order by delivery.id desc
                   limit 1) end as asked_due_at
  from candidate
 cross join lateral (
       select delivery.due_at
         from outbox.deliveries as delivery
        where delivery.subscription_id = candidate.subscription_id
          and delivery.due_at >= coalesce($1::timestamptz, '-infinity')
        order by delivery.due_at
        limit 1) as first
