-- Read the pauses that destinations asked for, with the seconds that are left of each, and the
-- generation of subscriptions at which they were true. There is always at least one row.
select generation.value as generation, pause.subscription_id,
       extract(epoch from pause.until - now())::double precision as seconds
  from outbox.generation as generation
  left join outbox.asked_pauses as pause on true
