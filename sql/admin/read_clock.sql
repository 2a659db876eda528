-- The database's clock, so long ago: "since 2h" must not depend on the clock of the operator's machine.
--   $1 seconds; negative for an instant to come
select clock_timestamp() - make_interval(secs => $1::double precision);
