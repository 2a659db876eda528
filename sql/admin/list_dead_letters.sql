-- Matching dead letters without payloads, newest first.
--   $1 subscription   $2 topic pattern   $3 LIKE pattern for reason, answer or status
--   $4 since   $5 id (null: any)   $6 until   $7 most rows
--   $8, $9 only those that come after this one: when it was given up, and its id (null: any)
select letter.id,
       letter.subscription,
       letter.event_id,
       letter.position,
       letter.topic,
       letter.key,
       letter.organization,
       letter.died_at,
       letter.attempts,
       letter.reason,
       letter.status,
       letter.answer
  from outbox.matching_dead_letters(
           $1::text, $2::text, $3::text, $4::timestamptz, $5::bigint, $6::timestamptz) as letter
 where $9::bigint is null
    or (letter.died_at, letter.id) < ($8::timestamptz, $9::bigint)
 order by letter.died_at desc, letter.id desc
 limit $7::bigint;
