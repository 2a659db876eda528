-- Says that nothing of a table leaves by its age.
--   $1 events, attempts, event_ids or dead_letters
select outbox_internal.keep_for_ever($1::text)
