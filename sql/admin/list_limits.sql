-- The organizations that are limited, by name.
select limited.organization, limited.rate, limited.updated_at
  from outbox.organization_limits as limited
 order by limited.organization
