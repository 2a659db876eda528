-- Functions and views for operators: redrive, discard, status; and the grants of all roles.

-- The regular expression of a pattern of topics. The topic is matched with a dot before it.
create function outbox.topic_expression(pattern text) returns text
language plpgsql immutable strict parallel safe as $$
declare
    segments  text[] := string_to_array(pattern, '.');
    expression text := '';
    segment   text;
begin
    -- Each segment is matched with the dot before it, so that `**` can match none.
    foreach segment in array segments loop
        if segment = '**' then
            expression := expression || '([.][^.]+)*';
        else
            expression := expression
                          || '[.]'
                          || regexp_replace(rtrim(segment, '*'), '([^[:alnum:]_])', E'\\\\\\1', 'g')
                          || case when segment = '*' then '[^.]+'
                                  when right(segment, 1) = '*' then '[^.]*'
                                  else '' end;
        end if;
    end loop;
    return '^' || expression || '$';
end;
$$;

-- Whether a topic matches a pattern: `*` is one segment, `**` any number (also none), `ord*` a
-- prefix of one segment. The expression is made once for a pattern that is the same in all rows.
create function outbox.topic_matches(pattern text, topic text) returns boolean
language sql immutable strict parallel safe as $$
    select ('.' || topic) ~ outbox.topic_expression(pattern)
$$;

-- What redrive, discard and the lists of dead letters filter by.
create function outbox.is_asked_for(
    letter       outbox.dead_letters,
    topic        text,
    error_like   text,
    since        timestamptz
) returns boolean
language sql stable as $$
    select (topic is null or outbox.topic_matches(topic, letter.topic))
       and (error_like is null
            or letter.reason like error_like
            or letter.answer like error_like
            or letter.status::text like error_like)
       and (since is null or letter.died_at >= since)
$$;

create function outbox.matching_dead_letters(
    subscription text        default null,
    topic        text        default null,
    error_like   text        default null,
    since        timestamptz default null
) returns setof outbox.dead_letters
language sql stable as $$
    -- A dead letter belongs to the subscription with its id, whatever that is called now.
    select letter.id, letter.died_at, letter.subscription_id,
           coalesce(target.name, letter.subscription), letter.reason, letter.status, letter.answer,
           letter.attempts, letter.event_id, letter.position, letter.created_at, letter.topic,
           letter.key, letter.payload, letter.headers, letter.organization, letter.source,
           letter.user_id, letter.priority, letter.schema_version
      from outbox.dead_letters as letter
      left join outbox.subscriptions as target on target.id = letter.subscription_id
     where (matching_dead_letters.subscription is null
            or coalesce(target.name, letter.subscription) = matching_dead_letters.subscription)
       and outbox.is_asked_for(
               letter, matching_dead_letters.topic, matching_dead_letters.error_like,
               matching_dead_letters.since)
$$;
comment on function outbox.matching_dead_letters is
    'The dead letters that outbox.redrive and outbox.discard would process with the same '
    'arguments.';

-- A part of many is found in the order of an index, with a plan for the filters that are given.
create function outbox.redrive(
    subscription text        default null,
    topic        text        default null,
    error_like   text        default null,
    since        timestamptz default null,
    max_rows     integer     default 1000
) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    target_id bigint := case when redrive.subscription is not null
                             then outbox.subscription_id(redrive.subscription) end;
    chosen  bigint[];
    redriven bigint;
begin
    if max_rows is null or max_rows not between 1 and 100000 then
        raise exception using errcode = '22023',
            message = format('max_rows: %s is not between 1 and 100000',
                             coalesce(max_rows::text, 'null'));
    end if;
    select array_agg(taken.id) into chosen
      from (select letter.id
              from outbox.dead_letters as letter
             where (target_id is null or letter.subscription_id = target_id)
               and outbox.is_asked_for(letter, redrive.topic, redrive.error_like, redrive.since)
               and letter.event_id is not null  -- what could not be read is never sent
               and exists (select from outbox.subscriptions as target
                            where target.id = letter.subscription_id)
             order by letter.position, letter.id
             limit max_rows
               for update of letter skip locked) as taken;

    -- An event that was removed from the log is inserted again. Its transaction id is before every
    -- snapshot, so routing does not treat it as new. Two redrives at once insert it once: the
    -- second waits for the commit of the first.
    if exists (select from outbox.dead_letters as letter
                where letter.id = any (chosen)
                  and not exists (select from outbox.events as event
                                   where event.position = letter.position
                                     and event.id = letter.event_id)) then
        perform pg_advisory_xact_lock(7411003);
    end if;
    insert into outbox.events (
        xid, position, created_at, id, topic, key, payload, headers, organization, source, user_id,
        priority, schema_version)
    overriding system value
    select distinct on (letter.position)
           '1'::xid8, letter.position, letter.created_at, letter.event_id, letter.topic, letter.key,
           letter.payload, letter.headers, letter.organization, letter.source, letter.user_id,
           letter.priority, letter.schema_version
      from outbox.dead_letters as letter
     where letter.id = any (chosen)
       and not exists (select from outbox.events as event
                        where event.position = letter.position and event.id = letter.event_id);

    with gone as (
        delete from outbox.dead_letters as letter where letter.id = any (chosen)
        returning letter.subscription_id, letter.position, letter.created_at
    )
    insert into outbox.deliveries (subscription_id, due_at, position, created_at, asked)
    select gone.subscription_id, clock_timestamp(), gone.position, gone.created_at, true
      from gone
     order by gone.position;
    get diagnostics redriven = row_count;

    if redriven > 0 and current_setting('outbox.doorbell', true) is distinct from 'off' then
        perform pg_notify('outbox_doorbell', 'due');
    end if;
    return redriven;
end;
$$;
comment on function outbox.redrive is
    'Retry matching dead letters, oldest first, with the attempt count reset. Returns how many; '
    'call again while it returns max_rows.';

create function outbox.discard(
    subscription text        default null,
    topic        text        default null,
    error_like   text        default null,
    since        timestamptz default null,
    max_rows     integer     default 1000
) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    discarded bigint;
begin
    if max_rows is null or max_rows not between 1 and 100000 then
        raise exception using errcode = '22023',
            message = format('max_rows: %s is not between 1 and 100000',
                             coalesce(max_rows::text, 'null'));
    end if;
    delete from outbox.dead_letters as letter
     where letter.id = any (array(
               select candidate.id
                 from outbox.matching_dead_letters(
                          discard.subscription, discard.topic, discard.error_like,
                          discard.since) as candidate
                order by candidate.position, candidate.id
                limit max_rows));
    get diagnostics discarded = row_count;
    return discarded;
end;
$$;
comment on function outbox.discard is
    'Delete matching dead letters permanently. Returns how many; call again while it returns '
    'max_rows.';

create view outbox.owed as
    select delivery.subscription_id, delivery.position, delivery.owed_since, delivery.due_at,
           delivery.lease_token, delivery.attempt, 'delivery' as place
      from outbox.deliveries as delivery
    union all
    select pair.subscription_id, pair.position, page.owed_since[1], page.due_at,
           page.lease_token, 1, 'page'
      from outbox.pages as page
     cross join lateral outbox.left_of(page) as pair
    union all
    select backlog.subscription_id, at.position, backlog.owed_since, backlog.owed_since,
           null, 0, 'backlog'
      from outbox.backlog as backlog
     cross join lateral unnest(backlog.positions) as span
     cross join lateral generate_series(lower(span), upper(span) - 1) as at (position);
comment on view outbox.owed is
    'One row for each event owed to a subscription: in the hands of a relay (lease_token, due_at: '
    'when the lease ends), or waiting. Not for large backlogs.';

create view outbox.subscription_status as
    select subscription.name, subscription.sink, subscription.organization, subscription.active,
           subscription.state, subscription.state_reason,
           pause.until as paused_until,
           coalesce(owed.backlog, 0) as backlog,
           coalesce(owed.in_flight, 0) as in_flight,
           coalesce(owed.retrying, 0) as retrying,
           now() - owed.oldest as oldest_age,
           (select count(*)
              from outbox.dead_letters as letter
             where letter.subscription_id = subscription.id) as dead_letters,
           reported.delivered, reported.failed,
           round(reported.delivered::numeric / nullif(reported.delivered + reported.failed, 0), 4)
               as success_rate,
           coalesce(reported.breaker, 'closed') as breaker,
           reported.filter_errors, reported.last_filter_error
      from outbox.subscriptions as subscription
      left join outbox.asked_pauses as pause on pause.subscription_id = subscription.id
      left join (select one.subscription_id, sum(one.owed)::bigint as backlog,
                        sum(one.leased)::bigint as in_flight,
                        sum(one.retrying)::bigint as retrying, min(one.oldest) as oldest
                   from (select delivery.subscription_id, count(*) as owed,
                                count(*) filter (where delivery.lease_token is not null
                                                   and delivery.due_at > now()) as leased,
                                count(*) filter (where delivery.attempt > 0
                                                   and delivery.lease_token is null) as retrying,
                                -- what is not due for the first time has no age
                                min(delivery.owed_since)
                                    filter (where delivery.owed_since <= now()) as oldest
                           from outbox.deliveries as delivery
                          group by delivery.subscription_id
                          union all
                         select backlog.subscription_id,
                                sum(outbox.count_positions(backlog.positions)), 0, 0,
                                min(backlog.owed_since)
                           from outbox.backlog as backlog
                          group by backlog.subscription_id
                          union all
                         select pair.subscription_id, count(*),
                                count(*) filter (where page.due_at > now()), 0,
                                min((select min(since) from unnest(page.owed_since) as since))
                           from outbox.pages as page
                          cross join lateral outbox.left_of(page) as pair
                          group by pair.subscription_id) as one
                  group by one.subscription_id) as owed on owed.subscription_id = subscription.id
      left join (select report.subscription_id, sum(report.delivered)::bigint as delivered,
                        sum(report.failed)::bigint as failed,
                        sum(report.filter_errors)::bigint as filter_errors,
                        (array_agg(report.last_filter_error order by report.reported_at desc)
                            filter (where report.last_filter_error is not null))[1]
                            as last_filter_error,
                        case when bool_or(report.breaker = 'open') then 'open'
                             when bool_or(report.breaker = 'half_open') then 'half_open'
                             else 'closed' end as breaker
                   from outbox.relay_subscriptions as report
                   join outbox.relays as relay
                     on relay.name = report.relay
                    and relay.seen_at > now() - interval '1 minute'
                  group by report.subscription_id) as reported
        on reported.subscription_id = subscription.id;
comment on view outbox.subscription_status is
    'One row per subscription: pending deliveries, age of the oldest, and reports of running '
    'relays (success rate, breaker, filter errors).';

create view outbox.log_status as
    with cursor as materialized (
        select one.* from outbox.cursor as one order by one.step desc limit 1
    ),
    -- Of transactions that were open when the cursor was moved, those that have committed.
    late (xid) as materialized (
        select open.xid
          from cursor
         cross join lateral (
               select named.xid from pg_snapshot_xip(cursor.settled) as named (xid)
               union all
               -- those that began later and may have positions below `low`
               select newer.xid::text::xid8
                 from generate_series(pg_snapshot_xmax(cursor.settled)::text::bigint,
                                      cursor.low_xid::text::bigint) as newer (xid)
                where cursor.window_end is not null) as open (xid)
         where case when pg_visible_in_snapshot(open.xid, pg_current_snapshot())
                    then pg_xact_status(open.xid) is distinct from 'aborted' end
    ),
    unrouted as (
        -- A window is open: what lies behind its last page, and above what was routed before it.
        select event.created_at
          from cursor
         cross join lateral (
               select one.created_at, one.xid from outbox.events as one
                where one.position > greatest(cursor.page_after, cursor.low)
                order by one.position
                limit 100000) as event
         where cursor.window_end is not null
           and not pg_visible_in_snapshot(event.xid, cursor.settled)
        union all
        select event.created_at
          from cursor
         cross join lateral (
               select one.created_at from outbox.events as one
                where one.xid >= pg_snapshot_xmax(cursor.settled)
                order by one.xid, one.position
                limit 100000) as event
         where cursor.window_end is null
        union all
        select event.created_at
          from cursor
         cross join late
         cross join lateral (
               select one.created_at from outbox.events as one
                where one.xid >= late.xid and one.xid <= late.xid
                  and one.position > coalesce(cursor.page_after, 0)
                  and (cursor.window_end is null or one.position <= cursor.low)
                order by one.xid, one.position
                limit 100000) as event
    )
    select count(*) as unrouted, now() - min(unrouted.created_at) as oldest_age
      from unrouted;
comment on view outbox.log_status is
    'One row: how many events of the log are not routed yet (counting stops at 100,000), and the '
    'age of the oldest.';

create view outbox.event_status as
    select event.id, event.position, event.topic, event.key, event.organization, event.created_at,
           case when owed.in_flight > 0 then 'processing'
                when owed.waiting > 0 or held_back.rows > 0 or not routed.yes or wanted.still
                then 'pending'
                when failed.letters > 0 then 'failed'
                else 'completed' end as status,
           coalesce(owed.waiting, 0) + held_back.rows as waiting,
           coalesce(owed.in_flight, 0) as in_flight,
           coalesce(owed.attempts, 0) as attempts,
           failed.letters as dead_letters
      from outbox.events as event
     cross join lateral (
           select pg_visible_in_snapshot(event.xid, cursor.settled)
                  or (cursor.window_end is not null
                      and pg_visible_in_snapshot(event.xid, cursor.window_end)
                      and event.position <= cursor.page_after) as yes
             from outbox.cursor as cursor
            order by cursor.step desc limit 1) as routed
     cross join lateral (
           -- A backfill has not reached the event yet, or has not recorded yet which events are
           -- past.
           select exists (select from outbox.starts as start
                           where event.position > start.position
                             and (start.until is null or event.position <= start.until)
                             and (start.since is null or event.created_at >= start.since))
                      as still) as wanted
      left join (select one.position, sum(one.waiting)::bigint as waiting,
                        sum(one.in_flight)::bigint as in_flight, max(one.attempts) as attempts
                   from (select delivery.position,
                                count(*) filter (where delivery.lease_token is null
                                                    or delivery.due_at <= now()) as waiting,
                                count(*) filter (where delivery.lease_token is not null
                                                   and delivery.due_at > now()) as in_flight,
                                max(delivery.attempt) as attempts
                           from outbox.deliveries as delivery
                          group by delivery.position
                          union all
                         select pair.position, count(*) filter (where page.due_at <= now()),
                                count(*) filter (where page.due_at > now()), 0
                           from outbox.pages as page
                          cross join lateral outbox.left_of(page) as pair
                          group by pair.position) as one
                  group by one.position) as owed on owed.position = event.position
     cross join lateral (
           select count(*) as rows
             from outbox.backlog as backlog
            where backlog.positions @> event.position) as held_back
     cross join lateral (
           select count(*) as letters
             from outbox.dead_letters as letter
            where letter.position = event.position) as failed;
comment on view outbox.event_status is
    'One row per event, without its payload: pending (also while a backfill has not reached it), '
    'processing, completed (no delivery pending, also if no subscription matched) or failed (a '
    'dead letter).';

-- Grants for all roles. Skips roles that do not exist (run it again after creating them) and
-- objects of later migrations.
create function outbox.grant_roles() returns text[]
language plpgsql as $$
declare
    granted text[] := '{}';
    role_exists boolean;
    grant_row record;
begin
    for grant_row in
        select * from (values
            ('outbox_publisher', 'usage on schema outbox'),
            ('outbox_publisher',
             'insert (id, topic, key, payload, headers, organization, source, user_id, priority, '
             'deliver_after, schema_version) on outbox.events'),
            ('outbox_publisher', 'insert (id) on outbox.event_ids'),
            ('outbox_publisher',
             'execute on function outbox.publish, outbox.new_id, outbox.headers_are_valid'),
            ('outbox_publisher',
             'execute on function outbox.capture, outbox.release, outbox.attach_capture, '
             'outbox.capture_numbers, outbox.capture_settings, outbox.capture_changes'),
            -- for the owner of capture_changes, whoever owns these
            ('outbox_publisher',
             'execute on function outbox.capture_key, outbox.capture_fit, outbox.capture_payload, '
             'outbox.capture_json, outbox.capture_is_plain, outbox.capture_expression, '
             'outbox.capture_simple, outbox.capture_simple_key, outbox.capture_whole, '
             'outbox.capture_setting, outbox.capture_valid_headers, outbox.capture_headers'),
            ('outbox_publisher', 'select on outbox.captures'),
            ('outbox_relay', 'usage on schema outbox'),
            ('outbox_relay', 'select on all tables in schema outbox'),
            ('outbox_relay', 'select on sequence outbox.events_position_seq'),
            ('outbox_relay',
             'insert, update, delete on outbox.deliveries, outbox.pages, outbox.backlog, '
             'outbox.relays, outbox.relay_subscriptions, outbox.pauses'),
            ('outbox_relay', 'insert on outbox.attempts, outbox.dead_letters'),
            ('outbox_relay', 'update on outbox.cursor'),
            ('outbox_relay', 'update on outbox.identity'),
            ('outbox_relay', 'update, delete on outbox.starts'),
            ('outbox_relay', 'update (state, state_reason, owed_until) on outbox.subscriptions'),
            ('outbox_relay', 'update (state_reason) on outbox.event_types'),
            ('outbox_relay',
             'execute on function outbox.topic_pattern_is_valid, outbox.duration_is_valid, '
             'outbox.function_call, outbox.call_function, outbox.declare_handler'),
            ('outbox_relay',
             'execute on function outbox.count_positions, outbox.first_positions, outbox.left_of, '
             'outbox.first_unreadable'),
            ('outbox_relay', 'execute on function outbox.capture_settings'),
            ('outbox_relay', 'execute on function outbox.is_written_by'),
            ('outbox_admin', 'usage on schema outbox'),
            ('outbox_admin', 'select on all tables in schema outbox'),
            ('outbox_admin', 'select on sequence outbox.events_position_seq'),
            ('outbox_admin', 'insert, update, delete on outbox.subscriptions, outbox.starts'),
            ('outbox_admin', 'insert, update, delete on outbox.event_types'),
            ('outbox_admin', 'execute on all functions in schema outbox'),
            ('outbox_monitor', 'usage on schema outbox'),
            ('outbox_monitor',
             'select on outbox.subscription_status, outbox.event_status, outbox.log_status, '
             'outbox.relays, '
             'outbox.relay_subscriptions'),
            ('outbox_monitor', 'select on outbox.identity, outbox.here, outbox.cursor'),
            ('outbox_monitor', 'select on sequence outbox.events_position_seq'),
            ('outbox_monitor', 'select on outbox.captures'),
            ('outbox_monitor',
             'execute on function outbox.count_positions, outbox.left_of, outbox.is_written_by'),
            ('outbox_monitor', 'execute on function outbox.capture_settings')
        ) as wanted (role, privilege)
    loop
        select exists (select from pg_catalog.pg_roles where rolname = grant_row.role)
          into role_exists;
        if role_exists then
            begin
                execute format('grant %s to %I', grant_row.privilege, grant_row.role);
                granted := granted || format('grant %s to %s', grant_row.privilege, grant_row.role);
            exception
                when undefined_function or undefined_table then null;
            end;
        end if;
    end loop;
    -- Captured writes run with the rights of the owner of outbox.capture_changes. As a publisher it
    -- keeps them when somebody else becomes the owner of the tables.
    for grant_row in
        select distinct pg_catalog.pg_get_userbyid(proc.proowner) as role
          from pg_catalog.pg_proc as proc
          join pg_catalog.pg_roles as owner on owner.oid = proc.proowner and not owner.rolsuper
         where proc.pronamespace = 'outbox'::regnamespace and proc.proname = 'capture_changes'
    loop
        begin
            execute format('grant outbox_publisher to %I', grant_row.role);
        exception
            -- the role is missing, may not be granted by this one, or is the owner itself
            when undefined_object or insufficient_privilege or invalid_grant_operation then null;
        end;
    end loop;
    return granted;
end;
$$;

revoke execute on all functions in schema outbox from public;
select outbox.grant_roles();
