-- Create or change an event type.
--   $1 topic pattern   $2 version   $3 schema   $4 mode   $5 description   $6 upcast
select outbox.define_event_type($1::text, $2::integer, $3::text::jsonb, $4::text, $5::text,
                                $6::text);
