-- What relays could not remove although it is old enough, and why. `is_problem`: somebody must act.
select 'partition ' || kept.partition as subject,
       format('it is due to be dropped since %s, and kept by %s',
              to_char(kept.since at time zone 'UTC', 'YYYY-MM-DD HH24:MI'),
              kept.kept_by) as problem,
       false as is_problem
  from outbox.retention_kept as kept
 union all
select 'retention of ' || period.log, period.problem, true
  from outbox.retention_periods as period
 where period.problem is not null
 order by 1
