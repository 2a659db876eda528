-- The number that moves with every committed change of a subscription, for a relay that has no room to route.
select generation.value
  from outbox.generation
