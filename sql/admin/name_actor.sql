-- Name who asked for what this transaction changes; outbox.audit records it.
--   $1 name
select set_config('outbox.actor', $1::text, true);
