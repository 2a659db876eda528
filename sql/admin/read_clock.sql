-- The time by the database's clock, minus a number of seconds: "since 2h" must not depend on the
-- operator's clock. $1 seconds; negative for a time in the future
select clock_timestamp() - make_interval(secs => $1::double precision);
