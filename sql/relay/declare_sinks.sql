-- Let subscriptions name the sinks of this program.
--   $1 names of all of them
select count(*) filter (where outbox.declare_sink(name)) from unnest($1::text[]) as name;
