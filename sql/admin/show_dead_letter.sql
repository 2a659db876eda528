-- One dead letter with all fields. The payload is data of the application: show it only on request.
--   $1 id
select letter.id, coalesce(target.name, letter.subscription) as subscription, letter.event_id,
       letter.position, letter.topic, letter.key, letter.organization, letter.died_at,
       letter.attempts, letter.reason, letter.status, letter.answer, letter.source, letter.user_id,
       letter.schema_version, letter.priority, letter.created_at, letter.headers, letter.payload
  from outbox.dead_letters as letter
  left join outbox.subscriptions as target on target.id = letter.subscription_id
 where letter.id = $1::bigint;
