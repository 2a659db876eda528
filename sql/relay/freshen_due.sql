-- Make deliveries that fell due before $3 due now, and return their subscriptions.
--   $1 first block of the table to look at
--   $2 number of blocks
--   $3 due time
--   $4 how many at most
--
-- While an old transaction is open, the index on due times keeps the entries of all deliveries that
-- were settled meanwhile. What is left among them is found here in the table itself, block by
-- block, and moved to where claims look.
-- There is always one row; it has the size of the table.
with old as materialized (
    select delivery.ctid as address
      from outbox.deliveries as delivery
     where delivery.ctid >= format('(%s,0)', $1::bigint)::tid
       and delivery.ctid < format('(%s,0)', $1::bigint + $2::bigint)::tid
       and delivery.due_at < $3::timestamptz
     limit $4::bigint
       for update skip locked
),
moved as (
    update outbox.deliveries as delivery
       set due_at = now()
     where delivery.ctid = any (array(select old.address from old))
    returning delivery.subscription_id
)
select pg_relation_size('outbox.deliveries')
       / current_setting('block_size')::bigint as blocks,
       (select count(*) from moved) as moved,
       array(select distinct moved.subscription_id from moved) as subscriptions
