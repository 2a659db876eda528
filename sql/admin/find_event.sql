-- Where an event is, without reading it.
--   $1 id
select found.position, found.created_at from outbox_internal.place_of_event($1::uuid) as found;
