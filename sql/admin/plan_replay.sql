-- What a replay with these arguments would read; nothing is changed.
--   $1 subscription   $2 since (null: only with $5)   $3 until (null: now)
--   $4 topic pattern   $5 event (null: any)   $6 rate (null: none)
select planned.position, planned.until_position, planned.since, planned.until,
       planned.settled::text as settled, planned.window_end::text as window_end,
       planned.page_after
  from outbox_internal.plan_replay($1::text, $2::timestamptz, $3::timestamptz, $4::text, $5::uuid,
                                   $6::text) as planned;
