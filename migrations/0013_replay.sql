-- Replays: events of the log are sent again to a subscription that had them, or should have had
-- them. Relays read the log from `position` to `until_position`. What the subscription wants as it
-- is now becomes rows of outbox.deliveries, a few at a time, in the commit that moves `position`.

create table outbox.replays (
    id              bigint      generated always as identity primary key,
    subscription_id bigint      not null references outbox.subscriptions on delete cascade,
    state           text        not null default 'running',
    -- the events: created_at from `since` on and before `until` (null: up to the start)
    since           timestamptz not null
        constraint since_is_a_time check (since between '0001-01-01Z' and '9999-12-31Z'),
    until           timestamptz
        constraint until_is_a_time check (until between '0001-01-01Z' and '9999-12-31Z'),
    topic           text,
    event           uuid,
    rate            text,
    started_by      text        not null default session_user,
    started_at      timestamptz not null default clock_timestamp(),
    ended_at        timestamptz,
    -- What had been routed at the start: it is visible in `settled`, or it belongs to the window
    -- that was open, up to `page_after`. All other events are delivered anyway.
    settled         pg_snapshot not null,
    window_end      pg_snapshot,
    page_after      bigint,
    first_position  bigint      not null,            -- below the first event
    until_position  bigint      not null,
    position        bigint      not null,            -- up to which the log was read
    -- counts, written with each part
    seen            bigint      not null default 0,  -- events of the span and the topic
    queued          bigint      not null default 0,  -- deliveries that were made of them
    -- with a rate: when the next delivery may be due
    paced_until     timestamptz,
    constraint state_is_known check (state in ('running', 'paused', 'done', 'cancelled'))
) with (fillfactor = 50);
comment on table outbox.replays is
    'Events that are sent again, a row for each call of outbox.replay. See outbox.replay_status.';
create index replays_subscription on outbox.replays (subscription_id, state);
-- what relays look for
create index replays_running on outbox.replays (id) where state = 'running';
-- what a replay waits for, and what became of it
create index deliveries_replay on outbox.deliveries (replay_id) where replay_id is not null;
create index dead_letters_replay on outbox.dead_letters (replay_id) where replay_id is not null;

-- Seconds between two deliveries at a rate; null without one.
create function outbox_internal.seconds_between(rate text) returns double precision
language sql immutable parallel safe as $$
    select case right(rate, 1) when 's' then 1 when 'm' then 60 else 3600 end
           / split_part(rate, '/', 1)::double precision
$$;

-- A position below all events from this time on, among those above `lowest`. Positions and times
-- grow together, so it is found by halves. The clock may have been set, and a log that was filled
-- by hand may have any times: an hour is allowed for, and a short log is not searched.
create function outbox_internal.position_before(
    at      timestamptz,
    lowest  bigint,
    highest bigint
) returns bigint
language plpgsql stable set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    below  bigint := lowest;
    above  bigint := highest;
    middle bigint;
    found_event record;
begin
    while highest - lowest > 100000 and above - below > 1000 loop
        middle := below + (above - below) / 2;
        select event.position, event.created_at into found_event
          from outbox.events as event
         where event.position > middle and event.position <= above
         order by event.position
         limit 1;
        if found and found_event.created_at < position_before.at - interval '1 hour' then
            below := found_event.position;
        else
            above := middle;
        end if;
    end loop;
    return below;
end;
$$;

-- What a replay with these arguments would read, as a row that is not inserted; also for a dry run.
-- Refuses arguments that cannot be meant.
create function outbox_internal.plan_replay(
    subscription text,
    since        timestamptz,
    until        timestamptz,
    topic        text,
    event        uuid,
    rate         text
) returns outbox.replays
language plpgsql stable as $$
declare
    planned outbox.replays;
    target  outbox.subscriptions;
    routed  outbox.cursor;
    published timestamptz;  -- of the event
    lowest  bigint;
begin
    planned.subscription_id := outbox_internal.subscription_id(plan_replay.subscription);
    if plan_replay.since is null and plan_replay.event is null then
        raise exception using errcode = '22023', message = 'since: is null',
            hint = 'Give the time of the first event, such as now() - interval ''2 days''.';
    elsif plan_replay.since > now() then
        raise exception using errcode = '22023',
            message = format('since: %s is in the future', plan_replay.since);
    elsif plan_replay.until <= plan_replay.since then
        raise exception using errcode = '22023',
            message = format('until: %s is not after since, %s', plan_replay.until,
                             plan_replay.since),
            hint = 'Events from since on and before until are sent again.';
    end if;
    perform outbox_internal.check_topic_pattern(plan_replay.topic);
    perform outbox_internal.check_rate(plan_replay.rate);

    select one.* into strict routed from outbox.cursor as one order by one.step desc limit 1;
    select one.* into strict target
      from outbox.subscriptions as one where one.id = planned.subscription_id;
    if target.sink = 'live' then
        raise exception using errcode = '22023',
            message = format('subscription: %L is a channel, to which nothing is sent again',
                             plan_replay.subscription),
            hint = 'Live clients resume with their token, or name a time to begin from (since).';
    end if;
    if pg_visible_in_snapshot(target.changed, routed.settled) then
        planned.settled := routed.settled;
        planned.window_end := routed.window_end;
        planned.page_after := routed.page_after;
    else
        -- A routing step that is under way may not know this version of the subscription: what it
        -- routes would be missed by both.
        planned.settled := pg_current_snapshot();
    end if;
    select sequence.last_value into strict planned.until_position
      from outbox.events_position_seq as sequence;
    if plan_replay.event is null then
        select coalesce(min(one.position) - 1, planned.until_position) into lowest
          from outbox.events as one;
        planned.first_position := outbox_internal.position_before(
            plan_replay.since, lowest, planned.until_position);
    else
        select one.position, one.created_at into planned.until_position, published
          from outbox_internal.find_event(plan_replay.event) as one;
        if published is null then
            raise exception using errcode = '22023',
                message = format('event: %s is not in the log', plan_replay.event);
        elsif published < plan_replay.since or published >= plan_replay.until then
            raise exception using errcode = '22023',
                message = format('event: %s was published at %s, which is not between since and '
                                 'until',
                                 plan_replay.event, published);
        end if;
        planned.first_position := planned.until_position - 1;
    end if;
    -- infinite times mean all
    planned.since := greatest(coalesce(plan_replay.since, published), '0001-01-01Z');
    planned.until := case when plan_replay.until <= '9999-12-31Z'
                          then greatest(plan_replay.until, '0001-01-01Z') end;
    planned.topic := plan_replay.topic;
    planned.event := plan_replay.event;
    planned.rate := plan_replay.rate;
    planned.position := planned.first_position;
    return planned;
end;
$$;

create function outbox.replay(
    subscription text,
    since        timestamptz,
    until        timestamptz default null,
    topic        text        default null,
    event        uuid        default null,
    rate         text        default null
) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    planned outbox.replays;
    most    constant integer := 10;
    made    bigint;
begin
    perform outbox_internal.ask_of_log();
    planned := outbox_internal.plan_replay(
        replay.subscription, replay.since, replay.until, replay.topic, replay.event, replay.rate);
    if (select count(*) from outbox.replays as open
         where open.subscription_id = planned.subscription_id
           and open.state in ('running', 'paused')) >= most then
        raise exception using errcode = '54000',
            message = format('subscription %L has %s replays that have not ended',
                             replay.subscription, most),
            hint = 'Wait for one of them, or end one: select outbox.cancel_replay(id). '
                   'outbox.replay_status lists them.';
    end if;
    insert into outbox.replays (
        subscription_id, since, until, topic, event, rate, settled, window_end, page_after,
        first_position, until_position, position)
    values (planned.subscription_id, planned.since, planned.until, planned.topic, planned.event,
            planned.rate, planned.settled, planned.window_end, planned.page_after,
            planned.first_position, planned.until_position, planned.position)
    returning id into made;
    perform outbox_internal.record_audit(
                'replay started', replay.subscription,
                jsonb_build_object('id', made, 'since', planned.since, 'until', planned.until,
                                   'topic', planned.topic, 'event', planned.event,
                                   'rate', planned.rate));
    perform outbox_internal.ring_for_replay();
    return made;
end;
$$;
comment on function outbox.replay is
    'Send events of the log again to a subscription: those from since on and before until (null: '
    'up to now) that it wants as it is now, also if they were delivered. topic: only of topics '
    'that match the pattern. event: only this one; since may then be null. rate: the most in a '
    'time, such as 50/s. Live events go first. Returns the id of the replay, see '
    'outbox.replay_status.';

create function outbox_internal.ring_for_replay() returns boolean
language plpgsql as $$
begin
    if current_setting('outbox.doorbell', true) is distinct from 'off' then
        perform pg_notify('outbox_doorbell', 'due');
        return true;
    end if;
    return false;
end;
$$;

-- Refuses the id of no replay.
create function outbox_internal.check_replay(id bigint) returns boolean
language plpgsql stable as $$
begin
    if not exists (select from outbox.replays as one where one.id = check_replay.id) then
        raise exception using errcode = '22023',
            message = format('id: there is no replay %s', coalesce(check_replay.id::text, 'null')),
            hint = 'List all: select id, subscription, state from outbox.replay_status.';
    end if;
    return true;
end;
$$;

create function outbox_internal.audit_replay(action text, id bigint, rows bigint default null)
returns bigint
language sql security definer set search_path = pg_catalog, pg_temp as $$
    select outbox_internal.record_audit(audit_replay.action, subscription.name,
                                        jsonb_build_object('id', replay.id), audit_replay.rows)
      from outbox.replays as replay
      join outbox.subscriptions as subscription on subscription.id = replay.subscription_id
     where replay.id = audit_replay.id
$$;

create function outbox.pause_replay(id bigint) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform outbox_internal.check_replay(pause_replay.id);
    update outbox.replays as one set state = 'paused'
     where one.id = pause_replay.id and one.state = 'running';
    if not found then
        return false;
    end if;
    perform outbox_internal.audit_replay('replay paused', pause_replay.id);
    return true;
end;
$$;
comment on function outbox.pause_replay is
    'Pause a replay: nothing more is queued for it. What is queued, at most 256 deliveries and '
    'those that wait for a retry, is still sent. Returns whether this changed anything.';

create function outbox.resume_replay(id bigint) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform outbox_internal.check_replay(resume_replay.id);
    update outbox.replays as one set state = 'running'
     where one.id = resume_replay.id and one.state = 'paused';
    if not found then
        return false;
    end if;
    perform outbox_internal.audit_replay('replay resumed', resume_replay.id);
    perform outbox_internal.ring_for_replay();
    return true;
end;
$$;
comment on function outbox.resume_replay is
    'Go on with a paused replay. Returns whether this changed anything.';

create function outbox.cancel_replay(id bigint) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    removed bigint;
begin
    perform outbox_internal.check_replay(cancel_replay.id);
    update outbox.replays as one
       set state = 'cancelled', ended_at = clock_timestamp()
     where one.id = cancel_replay.id and one.state in ('running', 'paused');
    if not found then
        return false;
    end if;
    delete from outbox.deliveries as delivery
     where delivery.id in (select free.id
                             from outbox.deliveries as free
                            where free.replay_id = cancel_replay.id
                              and (free.lease_token is null or free.due_at <= now())
                              for update skip locked);
    get diagnostics removed = row_count;
    update outbox.replays as one set queued = one.queued - removed
     where one.id = cancel_replay.id;
    perform outbox_internal.audit_replay('replay cancelled', cancel_replay.id, removed);
    return true;
end;
$$;
comment on function outbox.cancel_replay is
    'End a replay: what waits of it is never sent. What a relay is sending now may still arrive. '
    'Returns whether this changed anything.';

create view outbox.replay_status as
    select replay.id, subscription.name as subscription, replay.state,
           replay.since, replay.until, replay.topic, replay.event, replay.rate,
           round(case when replay.state = 'done' then 1
                      when replay.until_position <= replay.first_position then 0
                      else (replay.position - replay.first_position)::numeric
                           / (replay.until_position - replay.first_position) end, 4) as progress,
           replay.seen, greatest(replay.queued - waiting.count - given_up.count, 0) as sent,
           waiting.count as waiting, given_up.count as failed,
           replay.started_by, replay.started_at, replay.ended_at
      from outbox.replays as replay
      join outbox.subscriptions as subscription on subscription.id = replay.subscription_id
     cross join lateral (
           select count(*) as count
             from outbox.deliveries as delivery
            where delivery.replay_id = replay.id) as waiting
     cross join lateral (
           select count(*) as count
             from outbox.dead_letters as letter
            where letter.replay_id = replay.id) as given_up;
comment on view outbox.replay_status is
    'One row per replay. state: running, paused, done or cancelled. progress: how much of the log '
    'was read, 0 to 1. seen: events that were looked at. waiting: deliveries that are queued, in '
    'flight or wait for a retry. failed: dead letters that are still there. sent: all other '
    'deliveries.';

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
