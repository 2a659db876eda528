-- Due again after a wait. Rows whose lease was lost are left alone.
--   $1 deliveries   $2 lease tokens of this relay   $3 waits in seconds, in the order of $1   $4 whether the attempt counts, likewise
--
-- The waits are looked up by place, not joined: a join could be planned to read the whole table.
update outbox.deliveries as delivery
   set lease_token = null,
       unfinished  = 0,
       attempt     = case when ($4::boolean[])[array_position($1::bigint[], delivery.id)] then delivery.attempt
                          else greatest(delivery.attempt - 1, 0) end,
       due_at      = clock_timestamp()
                     + make_interval(secs => ($3::double precision[])[array_position($1::bigint[], delivery.id)])
 where delivery.id = any ($1::bigint[])
   and delivery.lease_token = any ($2::uuid[])
returning delivery.id
