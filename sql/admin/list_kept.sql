-- What relays could not remove although it is old enough, and why. `is_problem`: somebody must act.
select 'partition ' || kept.partition as subject,
       format('it is due to be dropped since %s, and kept by %s',
              to_char(kept.since at time zone 'UTC', 'YYYY-MM-DD HH24:MI'),
              kept.kept_by) as problem,
       false as is_problem
  from outbox.retention_kept as kept
 union all
select 'retention of ' || period.log, period.problem,
       not period.problem ~ '^(a lock: |until )'  -- these end by themselves
  from outbox.retention_periods as period
 where period.problem is not null
 union all
select 'retention of ' || period.log,
       format('no relay has looked since %s: see the log of the relays',
              to_char(period.looked_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI')),
       false
  from outbox.retention_periods as period
 where period.looked_at < now() - interval '2 hours'
   and exists (select from outbox.relays as relay
                where relay.seen_at > now() - interval '1 minute'
                  and relay.started_at < now() - interval '2 hours')
 order by 1
