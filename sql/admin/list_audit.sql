-- Who changed what, newest first.
--   $1 subscription   $2 since (null: any)   $3 most rows   $4 only those before this id
select entry.id, entry.subscription, entry.at, entry.action, entry.rows, entry.details,
       entry.login, entry.role, entry.application, entry.actor
  from outbox.audit as entry
 where ($1::text is null or entry.subscription = $1::text)
   and ($2::timestamptz is null or entry.at >= $2::timestamptz)
   and ($4::bigint is null or entry.id < $4::bigint)
 order by entry.id desc
 limit $3::bigint;
