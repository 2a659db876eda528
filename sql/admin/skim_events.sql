-- The position of the last event that list_events looks at; no row if it looks at all there are.
--   $1 how many of the newest are looked at   $2 only those before this position (null: any)
select newest.position
  from outbox.events as newest
 where $2::bigint is null or newest.position < $2::bigint
 order by newest.position desc
offset $1::bigint - 1
 limit 1;
