-- One dead letter with all fields. The payload is data of the application: show it only on request.
--   $1 id
select letter.id, letter.subscription, letter.event_id, letter.position, letter.topic,
       letter.key, letter.organization, letter.died_at, letter.attempts, letter.reason,
       letter.status, letter.answer, letter.source, letter.user_id, letter.schema_version,
       letter.priority, letter.created_at, letter.headers, letter.payload
  from outbox.matching_dead_letters(id => $1::bigint) as letter;
