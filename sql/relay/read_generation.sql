-- Read the number that grows with every committed change of a subscription, for a relay without
-- room to route.
select generation.value
  from outbox.generation
