-- Which subscriptions have deliveries that are due, and when the next one falls due otherwise: a loose scan, one probe
-- of the index for each subscription that has deliveries.
--   $1 look at due times from here on; null: all
--
-- The bound keeps the scan off index entries of deliveries long settled, which an old transaction may keep alive.
with recursive outstanding as (
    (select delivery.subscription_id
       from outbox.deliveries as delivery
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
)
select outstanding.subscription_id,
       extract(epoch from first.due_at - now())::double precision as due_in,
       now() as now
  from outstanding
 cross join lateral (
       select delivery.due_at
         from outbox.deliveries as delivery
        where delivery.subscription_id = outstanding.subscription_id
          and delivery.due_at >= coalesce($1::timestamptz, '-infinity')
        order by delivery.due_at
        limit 1) as first
 where outstanding.subscription_id is not null
