-- One dead letter with everything it holds, as the text of one JSON object. The payload is data of the application: show it to nobody else.
--   $1 its number
select to_jsonb(letter)::text
  from outbox.dead_letters as letter
 where letter.id = $1::bigint;
