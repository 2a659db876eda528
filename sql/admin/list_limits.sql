-- The organizations that are limited, by name.
--   $1 only those after this name (null: any)   $2 most rows
select limited.organization, limited.rate, limited.updated_at
  from outbox.organization_limits as limited
 where $1::text is null
    or limited.organization > $1::text
 order by limited.organization
 limit $2::bigint;
