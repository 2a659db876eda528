-- Matching dead letters by what went wrong, the most first.
--   $1 subscription   $2 topic pattern   $3 LIKE pattern for reason, answer or status
--   $4 since   $5 id (null: any)   $6 until   $7 most rows
select letter.subscription, letter.reason, letter.status, letter.answer, count(*) as dead_letters,
       min(letter.died_at) as oldest_at, max(letter.died_at) as newest_at,
       (array_agg(letter.id order by letter.died_at desc, letter.id desc))[1] as newest_id
  from outbox.matching_dead_letters(
           $1::text, $2::text, $3::text, $4::timestamptz, $5::bigint, $6::timestamptz) as letter
 group by letter.subscription, letter.reason, letter.status, letter.answer
 order by count(*) desc, letter.subscription, letter.reason, letter.status, letter.answer
 limit $7::bigint;
