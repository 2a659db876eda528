-- Record whether relays can use an event type, unless this is recorded already or the type was
-- changed since it was read.
--   $1 id
--   $2 why it cannot be used; null: it can
--   $3 topic   $4 version   $5 schema   $6 upcast, all as the relay read them
update outbox.event_types as type
   set state_reason = $2::text
 where type.id = $1::bigint
   and (type.topic, type.version, type.schema) = ($3::text, $4::integer, $5::text::jsonb)
   and type.upcast is not distinct from $6::text
   and type.state_reason is distinct from $2::text
returning type.id
