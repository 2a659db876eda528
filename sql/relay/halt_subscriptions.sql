-- Pause subscriptions whose order a dead letter would break (on_exhausted = halt). Returns those
-- that are paused now.
--   $1 subscriptions   $2 why, in the order of $1
select halted.id
  from outbox_internal.halt($1::bigint[], $2::text[]) as halted (id)
