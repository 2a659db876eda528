-- Take a copy of the outbox into use.
--   $1 whether what was not delivered is delivered
--   $2 environment of this copy; null: unchanged
select adopted.events, adopted.deliveries from outbox.adopt($1::boolean, $2::text) as adopted
