-- Why an event was not delivered: outbox.explain.

-- What had been routed when a subscription was made: these events it never got, unless it starts
-- earlier.
create table outbox.beginnings (
    subscription_id bigint primary key references outbox.subscriptions on delete cascade,
    settled         pg_snapshot not null,   -- of outbox.cursor at that time
    window_end      pg_snapshot,
    page_after      bigint,
    starts_at       timestamptz             -- as outbox.subscribe was told; null: now
);
comment on table outbox.beginnings is
    'Which events had been routed when a subscription was made. Removed by outbox.adopt, because '
    'transaction ids of another cluster say nothing.';

create function outbox_internal.record_beginning() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into outbox.beginnings (subscription_id, settled, window_end, page_after)
    select new.id, cursor.settled, cursor.window_end, cursor.page_after
      from outbox.cursor as cursor
     order by cursor.step desc
     limit 1;
    return null;
end;
$$;
create trigger record_beginning after insert on outbox.subscriptions
    for each row execute function outbox_internal.record_beginning();

create function outbox_internal.record_start() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform outbox_internal.refuse_for_channel('start')
       from outbox.subscriptions as subscription
      where subscription.id = new.subscription_id and subscription.sink = 'live';
    update outbox.beginnings as beginning set starts_at = coalesce(new.since, '-infinity')
     where beginning.subscription_id = new.subscription_id;
    return null;
end;
$$;
create trigger record_start after insert on outbox.starts
    for each row execute function outbox_internal.record_start();

-- an event that has left the log, by its id
create index dead_letters_event on outbox.dead_letters (event_id);

-- An event, from the log or else from its newest dead letter; then `xid` is null.
create function outbox_internal.traced_event(id uuid) returns setof outbox.events
language sql stable as $$
    with place as materialized (
        select found.position, found.created_at
          from outbox_internal.find_event(traced_event.id) as found
    )
    select event.*
      from place
      join outbox.events as event
        on event.position = place.position
       and event.created_at = place.created_at
    union all
    select whole.*
      from (select letter.*
              from outbox.dead_letters as letter
             where letter.event_id = traced_event.id
             order by letter.id desc
             limit 1) as letter
     cross join lateral jsonb_populate_record(
           null::outbox.events,
           to_jsonb(letter) || jsonb_build_object('id', letter.event_id)) as whole
     where not exists (select from place)
$$;

-- Whether a routing step has decided who gets an event.
create function outbox_internal.is_routed(event outbox.events) returns boolean
language sql stable as $$
    -- without a transaction id it is from a dead letter
    select event.xid is null
           or pg_visible_in_snapshot(event.xid, cursor.settled)
           or (cursor.window_end is not null
               and pg_visible_in_snapshot(event.xid, cursor.window_end)
               and event.position <= cursor.page_after)
           or exists (select from outbox.routed_early as early
                       where early.position = event.position)
      from outbox.cursor as cursor
     order by cursor.step desc
     limit 1
$$;

-- The first condition of a subscription that an event does not meet: organization, topics, keys,
-- itself (it says what happened to this very subscription), match; filter_unknown where only the
-- filter is left, which SQL cannot evaluate; null: all hold.
-- A test compares it with the code that routes.
create function outbox_internal.refusal(
    subscription outbox.subscriptions,
    event        outbox.events
) returns text
language sql stable as $$
    select case
           when subscription.organization is not null
                and subscription.organization is distinct from event.organization::text
           then 'organization'
           when not exists (select from unnest(subscription.topics) as pattern
                             where outbox.topic_matches(pattern, event.topic))
           then 'topics'
           when subscription.keys is not null
                and not exists (select from unnest(subscription.keys) as prefix
                                 where starts_with(event.key, prefix))
           then 'keys'
           when starts_with(event.topic, 'outbox.') and event.key = subscription.name
           then 'itself'
           when subscription.match is not null
                and not event.payload::jsonb @> subscription.match
           then 'match'
           when subscription.filter is not null then 'filter_unknown'
           end
$$;

-- What became of an event for each subscription. `refusals` has what the caller has evaluated: by
-- id of a subscription the condition that does not hold and its part; where all hold there is
-- nothing. Null: SQL evaluates what it can.
-- A further cause is a branch of `status`, a line of `waits_for` and a variant of
-- TraceStatus in src/admin/trace.
create function outbox_internal.explain_event(
    event    outbox.events,
    named    text  default null,
    refusals jsonb default null
) returns table (
    subscription_id bigint,
    subscription    text,
    status          text,
    reason          text,
    waits_for       text,
    until           timestamptz,
    attempts        integer,
    last_attempt_at timestamptz,
    detail          jsonb
)
-- Its estimated costs would start the compiler of PostgreSQL, which takes seconds; and many
-- subscriptions may have a record each, where few are expected.
language sql stable set jit = off set enable_nestloop = off as $$
    with owed as materialized (
        select delivery.subscription_id, 'delivery' as place, delivery.owed_since, delivery.due_at,
               delivery.key as ordered_key, delivery.replay_id,
               delivery.lease_token is not null as was_leased, delivery.attempt as attempts,
               -- rows do not say who leased them
               (select case when count(*) = 1 then min(relay.name) end
                  from outbox.relays as relay
                 where relay.seen_at > now() - interval '1 minute') as relay,
               false as is_suspect
          from outbox.deliveries as delivery
         where delivery.position = (explain_event.event).position
        union all
        select pair.subscription_id, 'page', page.owed_since[1], page.due_at, null, null, true, 0,
               page.relay,
               page.deaths > 0
          from outbox.pages as page
         cross join lateral outbox_internal.left_of(page) as pair
         where (explain_event.event).created_at between page.created_from and page.created_until
           and exists (select from unnest(page.owed) as positions
                        where positions @> (explain_event.event).position)
           and pair.position = (explain_event.event).position
        union all
        select backlog.subscription_id, 'backlog', backlog.owed_since, null, null, null, false, 0,
               null,
               backlog.deaths > 0
          from outbox.backlog as backlog
         where backlog.positions @> (explain_event.event).position
           and (explain_event.event).created_at between backlog.created_from
                                                    and backlog.created_until
    ),
    -- after a lost lease there may be two
    waiting as materialized (
        select distinct on (one.subscription_id)
               one.*, one.was_leased and one.due_at > now() as is_held
          from owed as one
         order by one.subscription_id, one.was_leased and one.due_at > now() desc, one.due_at
    ),
    tried as materialized (
        select distinct on (attempt.subscription_id)
               attempt.subscription_id, attempt.at, attempt.reason, attempt.status, attempt.answer,
               attempt.outcome,
               max(attempt.attempt) over attempts_of as attempts,
               max(attempt.at) filter (where attempt.outcome = 'delivered') over attempts_of
                   as delivered_at
          from outbox.attempts as attempt
         where attempt.position = (explain_event.event).position
           and attempt.at >= (explain_event.event).created_at
           and coalesce(attempt.event_id = (explain_event.event).id, true)
        window attempts_of as (partition by attempt.subscription_id)
         order by attempt.subscription_id, attempt.at desc
    ),
    letters as materialized (
        select distinct on (letter.subscription_id)
               letter.id, letter.subscription_id, letter.subscription, letter.reason,
               letter.status, letter.answer, letter.attempts, letter.event_id, letter.died_at
          from outbox.dead_letters as letter
         where letter.position = (explain_event.event).position
           and coalesce(letter.event_id = (explain_event.event).id, true)
         order by letter.subscription_id, letter.id desc
    ),
    breakers as materialized (
        select report.subscription_id, jsonb_agg(report.relay order by report.relay) as relays
          from outbox.relay_subscriptions as report
          join outbox.relays as relay
            on relay.name = report.relay
           and relay.seen_at > now() - interval '1 minute'
         where report.breaker <> 'closed'
         group by report.subscription_id
    ),
    known as (
        select one.id, one.name, one as row from outbox.subscriptions as one
        union all
        -- those that were deleted
        select gone.subscription_id, min(gone.name), null
          from (select letter.subscription_id, letter.subscription as name from letters as letter
                union all
                select attempt.subscription_id, null from tried as attempt) as gone
         where not exists (select from outbox.subscriptions as one
                            where one.id = gone.subscription_id)
         group by gone.subscription_id
    ),
    facts as materialized (
        select known.id, known.name,
               known.row is null as is_deleted, (known.row).active, (known.row).state,
               (known.row).state_reason,
               case when (known.row).updated_at > (explain_event.event).created_at
                         and (known.row).updated_at > (known.row).created_at
                    then (known.row).updated_at end as changed_at,
               coalesce((known.row).sink = 'live', false) as is_channel,
               (known.row).state = 'gone'
                   and (explain_event.event).position
                       > coalesce((known.row).owed_until, 0) as is_after_gone,
               waiting.place, waiting.owed_since, waiting.due_at, waiting.was_leased,
               waiting.is_held, waiting.is_suspect, waiting.relay,
               waiting.attempts as attempts_of_row,
               letter.id as letter_id, letter.reason as letter_reason,
               letter.status as letter_status, letter.answer as letter_answer,
               letter.attempts as letter_attempts, letter.event_id is not null as is_redrivable,
               letter.died_at,
               tried.at as tried_at, tried.reason as tried_reason, tried.status as tried_status,
               tried.answer as tried_answer, tried.attempts as attempts_tried, tried.delivered_at,
               tried.outcome as tried_outcome, waiting.replay_id,
               waiting.place is not null
                   and exists (select from outbox.parked_keys as parked
                                where parked.subscription_id = known.id
                                  and parked.key = (explain_event.event).key) as is_parked,
               waiting.ordered_key is not null
                   and waiting.due_at >= outbox_internal.never() as is_behind,
               pause.until as paused_until, breakers.relays as breakers,
               case when known.row is null then null
                    when explain_event.refusals is null
                    then outbox_internal.refusal(known.row, explain_event.event)
                    else explain_event.refusals -> known.id::text ->> 0 end as refusal,
               explain_event.refusals -> known.id::text ->> 1 as part,
               -- of a subscription with a start: the backfill has not come to it
               exists (select from outbox.starts as start
                        where start.subscription_id = known.id
                          and (explain_event.event).position > start.position
                          and (start.since is null
                               or (explain_event.event).created_at >= start.since)
                          and ((explain_event.event).xid is null or start.settled is null
                               or pg_visible_in_snapshot((explain_event.event).xid, start.settled)
                               or coalesce(pg_visible_in_snapshot((explain_event.event).xid,
                                                                  start.window_end)
                                           and (explain_event.event).position
                                               <= start.page_after, false)))
                   as is_starting,
               coalesce((explain_event.event).created_at < (known.row).created_at
                        and coalesce((explain_event.event).created_at < beginning.starts_at, true)
                        and case when (explain_event.event).xid is null or beginning.settled is null
                                 then true  -- only the times are known
                                 else pg_visible_in_snapshot((explain_event.event).xid,
                                                             beginning.settled)
                                      or coalesce(pg_visible_in_snapshot((explain_event.event).xid,
                                                                         beginning.window_end)
                                                  and (explain_event.event).position
                                                      <= beginning.page_after, false) end,
                        false) as is_before_start
          from known
          left join waiting on waiting.subscription_id = known.id
          left join letters as letter on letter.subscription_id = known.id
          left join tried on tried.subscription_id = known.id
          left join breakers on breakers.subscription_id = known.id
          left join outbox.asked_pauses as pause on pause.subscription_id = known.id
          left join outbox.beginnings as beginning on beginning.subscription_id = known.id
         where explain_event.named is null or known.name = explain_event.named
    ),
    judged as (
        select facts.*,
               -- the first that holds
               case
               when facts.is_held then 'in_flight'
               when facts.place is not null and facts.state = 'gone' then 'gone'
               when facts.place is not null and facts.state = 'disabled' then 'disabled'
               when facts.place is not null and not facts.active then 'paused'
               when facts.place is not null and facts.state = 'invalid' then 'invalid'
               when facts.is_parked then 'parked'
               when facts.is_behind then 'behind_key'
               when facts.due_at > now() and facts.owed_since > now() then 'scheduled'
               -- its own wait and the pause are counted from two moments
               when facts.place is not null
                    and facts.paused_until
                        >= coalesce(facts.due_at, '-infinity') - interval '10 seconds'
               then 'paused_by_destination'
               when facts.due_at > now() then 'retrying'
               when facts.is_suspect then 'suspect'
               when facts.was_leased then 'lease_ended'
               when facts.place is not null and facts.breakers is not null then 'breaker_open'
               when facts.place = 'backlog' then 'backlog'
               when facts.place is not null then 'due'
               when facts.tried_outcome = 'superseded' then 'superseded'
               when facts.letter_reason = 'expired' then 'expired'
               when facts.letter_reason in ('relay_killed', 'event_unreadable') then 'quarantined'
               when facts.letter_id is not null then 'dead_letter'
               when facts.delivered_at is not null then 'delivered'
               when facts.is_deleted then 'deleted'
               when facts.refusal = 'failed' then 'condition_failed'
               when facts.refusal <> 'filter_unknown' then 'unwanted'
               when facts.is_channel and facts.refusal is null then 'channel'
               when facts.is_channel then 'unknown'
               when facts.is_after_gone then 'after_gone'
               when not outbox_internal.is_routed(explain_event.event) then 'not_routed'
               when facts.is_starting then 'backfill'
               when facts.is_before_start then 'before_start'
               when facts.refusal = 'filter_unknown' then 'unknown'
               else 'settled'
               end as status
          from facts
    )
    select judged.id, judged.name, judged.status,
           case when judged.status = 'unwanted' then judged.refusal
                when judged.status = 'condition_failed' then judged.part
                when judged.status in ('gone', 'after_gone', 'disabled', 'invalid', 'paused')
                then judged.state_reason
                when judged.status in ('expired', 'quarantined', 'dead_letter')
                then judged.letter_reason
                when judged.status <> 'delivered' then judged.tried_reason end,
           case when judged.status in ('due', 'backlog', 'suspect', 'lease_ended', 'breaker_open',
                                       'not_routed', 'backfill')
                     and not exists (select from outbox.relays as relay
                                      where relay.seen_at > now() - interval '1 minute')
                then 'a running relay'
                else case judged.status
                     when 'in_flight' then 'an answer, or the end of the lease'
                     when 'gone' then 'outbox.resume()'
                     when 'disabled' then 'outbox.resume()'
                     when 'paused' then 'outbox.resume()'
                     when 'invalid' then 'a correction of the subscription'
                     when 'parked' then 'a redrive or discard of what parked its key'
                     when 'behind_key' then 'an earlier event of its key'
                     when 'scheduled' then 'its time'
                     when 'paused_by_destination' then 'the end of the pause'
                     when 'retrying' then 'its next attempt'
                     when 'suspect' then 'its turn'
                     when 'lease_ended' then 'a relay that takes it over'
                     when 'breaker_open' then 'a probe that succeeds'
                     when 'backlog' then 'room for its subscription'
                     when 'due' then 'its turn'
                     when 'not_routed' then 'a relay that routes it'
                     when 'backfill' then 'the backfill'
                     end end,
           case when judged.status in ('in_flight', 'scheduled', 'retrying') then judged.due_at
                when judged.status = 'paused_by_destination'
                then greatest(judged.paused_until, judged.due_at)
                when judged.status = 'not_routed'
                     and (explain_event.event).deliver_after > now()
                then (explain_event.event).deliver_after end,
           greatest(judged.attempts_of_row - judged.is_held::integer, judged.letter_attempts,
                    judged.attempts_tried, 0),
           judged.tried_at,
           jsonb_strip_nulls(jsonb_build_object(
               'condition', judged.refusal,
               'part', judged.part,
               'place', judged.place,
               'owed_since', judged.owed_since,
               'due_at', nullif(judged.due_at, outbox_internal.never()),
               'replay', judged.replay_id,
               'relay', case when judged.is_held then judged.relay end,
               'breakers', judged.breakers,
               'paused_until', judged.paused_until,
               'dead_letter', judged.letter_id,
               'died_at', judged.died_at,
               'is_redrivable', case when judged.letter_id is not null and not judged.is_deleted
                                     then judged.is_redrivable end,
               'http_status', coalesce(judged.letter_status, judged.tried_status),
               'answer', coalesce(judged.letter_answer, judged.tried_answer),
               'delivered_at', judged.delivered_at,
               'changed_at', judged.changed_at,
               'is_deleted', nullif(judged.is_deleted, false)))
      from judged
     order by judged.name nulls last, judged.id
$$;

create function outbox.explain(event uuid)
returns table (
    subscription    text,
    status          text,
    reason          text,
    waits_for       text,
    until           timestamptz,
    attempts        integer,
    last_attempt_at timestamptz,
    detail          jsonb
)
language plpgsql stable as $$
declare
    traced outbox.events;
begin
    select one.* into traced from outbox_internal.traced_event(explain.event) as one;
    if traced.id is null then
        return query
            select null::text, 'unknown_event'::text,
                   'not committed, or removed from the log, and no dead letter has it'::text,
                   null::text, null::timestamptz, 0, null::timestamptz, '{}'::jsonb;
        return;
    end if;
    return query
        select one.subscription, one.status, one.reason, one.waits_for, one.until, one.attempts,
               one.last_attempt_at, one.detail
          from outbox_internal.explain_event(traced) as one;
end;
$$;
comment on function outbox.explain is
    'Why an event was not delivered: for each subscription what became of it, or the first '
    'condition that kept it away, and what it waits for. SQL cannot evaluate filters: where only '
    'the filter is left the status is unknown; pgoutbox trace evaluates it.';

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
