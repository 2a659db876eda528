-- One dead letter with all fields, as a JSON object. The payload is data of the application: show
-- it only on request. $1 id
select to_jsonb(letter)::text
  from outbox.dead_letters as letter
 where letter.id = $1::bigint;
