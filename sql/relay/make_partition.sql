-- Take a step towards the next partition of a log. What is null was not done, or does not apply.
--   $1 events or attempts
--   $2 for how many seconds its rows are kept
select made.done, made.partition, made.problem
  from outbox_internal.make_partition(
           $1::text, justify_hours(make_interval(secs => $2::double precision))) as made
