-- Functions and views for operators: redrive, discard, status; and the grants of all roles.

-- Refuses what is not a topic pattern, also where there is nothing to compare it with.
create function outbox_internal.check_topic_pattern(pattern text) returns boolean
language plpgsql immutable strict parallel safe as $$
begin
    if not outbox_internal.topic_pattern_is_valid(pattern) then
        raise exception using errcode = '22023',
            message = format('topic: %L is not a topic pattern', pattern),
            hint = 'Segments are separated by dots and have no blanks; "*" is one segment, "**" '
                   'any number, "ord*" a prefix; a star must be the last character of its '
                   'segment.';
    end if;
    return true;
end;
$$;

-- Refuses a limit that would be no limit.
create function outbox_internal.check_max_rows(max_rows integer) returns boolean
language plpgsql immutable parallel safe as $$
begin
    if max_rows is null or max_rows not between 1 and 100000 then
        raise exception using errcode = '22023',
            message = format('max_rows: %s is not between 1 and 100000',
                             coalesce(max_rows::text, 'null'));
    end if;
    return true;
end;
$$;

-- The regular expression of a pattern of topics. The topic is matched with a dot before it.
create function outbox_internal.topic_expression(pattern text) returns text
language plpgsql immutable strict parallel safe as $$
declare
    segments  text[] := string_to_array(pattern, '.');
    expression text := '';
    segment   text;
begin
    perform outbox_internal.check_topic_pattern(pattern);
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
-- prefix of one segment. Topics that begin with `outbox.` match only patterns that do, so that
-- `**` is what applications publish. The expression is made once for a pattern that is the same in
-- all rows.
create function outbox.topic_matches(pattern text, topic text) returns boolean
language sql immutable strict parallel safe as $$
    select ('.' || topic) ~ outbox_internal.topic_expression(pattern)
       and (starts_with(pattern, 'outbox.') or not starts_with(topic, 'outbox.'))
$$;

-- What redrive, discard and the lists of dead letters filter by.
create function outbox_internal.is_asked_for(
    letter       outbox.dead_letters,
    topic        text,
    error_like   text,
    since        timestamptz,
    until        timestamptz
) returns boolean
language sql stable as $$
    select (topic is null or outbox.topic_matches(topic, letter.topic))
       and (error_like is null
            or letter.reason like error_like
            or letter.answer like error_like
            or letter.status::text like error_like)
       and (since is null or letter.died_at >= since)
       and (until is null or letter.died_at < until)
$$;

create function outbox.matching_dead_letters(
    subscription text        default null,
    topic        text        default null,
    error_like   text        default null,
    since        timestamptz default null,
    id           bigint      default null,
    until        timestamptz default null
) returns setof outbox.dead_letters
language sql stable as $$
    -- A dead letter belongs to the subscription with its id, whatever that is called now.
    select letter.id, letter.died_at, letter.subscription_id,
           coalesce(target.name, letter.subscription), letter.reason, letter.status, letter.answer,
           letter.attempts, letter.event_id, letter.position, letter.created_at, letter.topic,
           letter.key, letter.payload, letter.headers, letter.organization, letter.source,
           letter.user_id, letter.priority, letter.schema_version, letter.replay_id
      from outbox.dead_letters as letter
      left join outbox.subscriptions as target on target.id = letter.subscription_id
     where (matching_dead_letters.id is null or letter.id = matching_dead_letters.id)
       and (matching_dead_letters.subscription is null
            or coalesce(target.name, letter.subscription) = matching_dead_letters.subscription)
       and outbox_internal.is_asked_for(
               letter, matching_dead_letters.topic, matching_dead_letters.error_like,
               matching_dead_letters.since, matching_dead_letters.until)
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
    max_rows     integer     default 1000,
    id           bigint      default null,
    until        timestamptz default null
) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    target_id bigint := case when redrive.subscription is not null
                             then outbox_internal.subscription_id(redrive.subscription) end;
    chosen  bigint[];
    redriven bigint;
begin
    perform outbox_internal.check_max_rows(redrive.max_rows);
    perform outbox_internal.check_topic_pattern(redrive.topic);
    perform outbox_internal.ask_of_log();
    select array_agg(taken.id) into chosen
      from (select letter.id
              from outbox.dead_letters as letter
             where (target_id is null or letter.subscription_id = target_id)
               and (redrive.id is null or letter.id = redrive.id)
               and outbox_internal.is_asked_for(letter, redrive.topic, redrive.error_like,
                                                redrive.since, redrive.until)
               and letter.event_id is not null  -- what could not be read is never sent
               and exists (select from outbox.subscriptions as target
                            where target.id = letter.subscription_id)
             order by letter.position, letter.id
             limit max_rows
               for update of letter skip locked) as taken;

    -- What is there stays there. If a session's snapshot shows what has left since, this fails.
    perform from outbox.dead_letters as letter
            join outbox.events as event
              on event.position = letter.position and event.id = letter.event_id
           where letter.id = any (chosen)
             for key share of event;
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
        returning letter.subscription_id, letter.position, letter.created_at, letter.key
    )
    insert into outbox.deliveries (subscription_id, due_at, position, created_at, asked, key)
    select gone.subscription_id, clock_timestamp(), gone.position, gone.created_at, true,
           case when target.ordering = 'key' then gone.key end
      from gone
      join outbox.subscriptions as target on target.id = gone.subscription_id
     order by gone.position;
    get diagnostics redriven = row_count;
    perform outbox_internal.unpark(chosen);

    if redriven > 0 then
        perform outbox_internal.record_audit(
                    'redriven', redrive.subscription,
                    jsonb_build_object('topic', redrive.topic, 'error_like', redrive.error_like,
                                       'since', redrive.since, 'until', redrive.until,
                                       'max_rows', redrive.max_rows, 'id', redrive.id),
                    redriven);
    end if;
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
    max_rows     integer     default 1000,
    id           bigint      default null,
    until        timestamptz default null
) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    chosen    bigint[];
    discarded bigint;
begin
    perform outbox_internal.check_max_rows(discard.max_rows);
    perform outbox_internal.check_topic_pattern(discard.topic);
    chosen := array(
               select candidate.id
                 from outbox.matching_dead_letters(
                          discard.subscription, discard.topic, discard.error_like,
                          discard.since, discard.id, discard.until) as candidate
                order by candidate.position, candidate.id
                limit max_rows);
    delete from outbox.dead_letters as letter where letter.id = any (chosen);
    get diagnostics discarded = row_count;
    if outbox_internal.unpark(chosen) > 0
       and current_setting('outbox.doorbell', true) is distinct from 'off' then
        perform pg_notify('outbox_doorbell', 'due');
    end if;
    if discarded > 0 then
        perform outbox_internal.record_audit(
                    'discarded', discard.subscription,
                    jsonb_build_object('topic', discard.topic, 'error_like', discard.error_like,
                                       'since', discard.since, 'until', discard.until,
                                       'max_rows', discard.max_rows, 'id', discard.id),
                    discarded);
    end if;
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
     cross join lateral outbox_internal.left_of(page) as pair
    union all
    select backlog.subscription_id, at.position, backlog.owed_since, backlog.owed_since,
           null, 0, 'backlog'
      from outbox.backlog as backlog
     cross join lateral unnest(backlog.positions) as span
     cross join lateral generate_series(lower(span), upper(span) - 1) as at (position);
comment on view outbox.owed is
    'One row for each event owed to a subscription: in the hands of a relay (lease_token, due_at: '
    'when the lease ends), or waiting. Not for large backlogs.';

create view outbox.waiting as
    select place.subscription_id, subscription.name as subscription, place.position,
           event.id as event_id, event.topic, event.key, event.organization,
           coalesce(event.created_at, place.created_from) as created_at,
           place.owed_since, nullif(place.due_at, outbox_internal.never()) as due_at,
           place.attempts,
           last.reason, last.status, last.answer,
           place.place, place.id, place.number, place.unfinished, place.asked,
           place.ordered_key, place.replay_id, place.repeated
      from (select delivery.subscription_id, delivery.position,
                   delivery.created_at as created_from, delivery.created_at as created_until,
                   delivery.owed_since, delivery.due_at, delivery.attempt as attempts,
                   'delivery' as place, delivery.id, null::integer as number,
                   delivery.unfinished + (delivery.lease_token is not null)::integer as unfinished,
                   delivery.asked, delivery.key as ordered_key, delivery.replay_id,
                   delivery.repeated or delivery.lease_token is not null as repeated
              from outbox.deliveries as delivery
             where delivery.lease_token is null
                or delivery.due_at <= now()
            union all
            -- what a relay held that ended
            select pair.subscription_id, pair.position, page.created_from, page.created_until,
                   coalesce((select max(entry.since)
                               from unnest(page.subscriptions, page.owed_since)
                                    as entry (subscription_id, since)
                              where entry.subscription_id = pair.subscription_id),
                            page.owed_since[1]),
                   null, 0, 'page', page.id, pair.number, least(page.deaths + 1, 2), false,
                   null, null, true
              from outbox.pages as page
             cross join lateral outbox_internal.left_of(page) as pair
             where page.due_at <= now()
            union all
            select backlog.subscription_id, at.position, backlog.created_from,
                   backlog.created_until, backlog.owed_since, null, 0, 'backlog', backlog.id, null,
                   least(backlog.deaths, 2), false, null, null, backlog.deaths > 0
              from outbox.backlog as backlog
             cross join lateral unnest(backlog.positions) as span
             cross join lateral generate_series(lower(span), upper(span) - 1) as at (position)
           ) as place
      join outbox.subscriptions as subscription on subscription.id = place.subscription_id
      left join lateral (
           select one.id, one.topic, one.key, one.organization, one.created_at
             from outbox.events as one
            where one.position = place.position
              and one.created_at between place.created_from and place.created_until
            limit 1) as event on true
      left join lateral (
           select attempt.reason, attempt.status, attempt.answer
             from outbox.attempts as attempt
            where attempt.position = place.position
              and attempt.subscription_id = place.subscription_id
            order by attempt.at desc
            limit 1) as last on true;
comment on view outbox.waiting is
    'One row for each delivery that no relay holds: one for a retry or for later (due_at), and one '
    'that waits until its subscription can take it or, with ordered_key, behind an earlier event '
    'of its key (due_at is null). With the reason, status and answer of its last attempt, as far '
    'as outbox.attempts has it. Not for large backlogs: use outbox.matching_deliveries with a '
    'limit.';

create function outbox.matching_deliveries(
    subscription text default null,
    topic        text default null,
    event        uuid default null,
    error_like   text default null
) returns setof outbox.waiting
language sql stable as $$
    select waiting.*
      from outbox.waiting as waiting
     where (matching_deliveries.subscription is null
            or waiting.subscription = matching_deliveries.subscription)
       and (matching_deliveries.topic is null
            or outbox.topic_matches(matching_deliveries.topic, waiting.topic))
       and (matching_deliveries.event is null
            or waiting.event_id = matching_deliveries.event)
       and (matching_deliveries.error_like is null
            or waiting.reason like matching_deliveries.error_like
            or waiting.answer like matching_deliveries.error_like
            or waiting.status::text like matching_deliveries.error_like)
$$;
comment on function outbox.matching_deliveries is
    'The waiting deliveries that outbox.cancel would process with the same arguments. outbox.retry '
    'leaves out those that were asked for already, and those that an application scheduled for '
    'later, unless an event is named.';

-- Remove matching deliveries from where they wait, and return them. What a relay holds, or somebody
-- else has locked, stays. With `to_retry`, those stay too that outbox.retry leaves out.
create function outbox_internal.take_waiting(
    subscription text,
    topic        text,
    event        uuid,
    error_like   text,
    max_rows     integer,
    to_retry     boolean
) returns setof outbox.waiting
language plpgsql as $$
declare
    chosen outbox.waiting[];
    part   record;
    ids    bigint[] := '{}';
    taken  int8multirange[] := '{}';
    found_now int8multirange;
begin
    perform outbox_internal.check_max_rows(take_waiting.max_rows);
    perform outbox_internal.check_topic_pattern(take_waiting.topic);
    if take_waiting.subscription is not null then
        perform outbox_internal.subscription_id(take_waiting.subscription);
    end if;
    chosen := array(
        select matching
          from outbox.matching_deliveries(take_waiting.subscription, take_waiting.topic,
                                          take_waiting.event, take_waiting.error_like) as matching
         where not take_waiting.to_retry
            or (not matching.asked
                and (take_waiting.event is not null or matching.owed_since <= now())
                -- nothing overtakes the events of its key before it
                and (matching.place = 'delivery' and matching.due_at is not null
                     or not exists (select from outbox.subscriptions as target
                                     where target.id = matching.subscription_id
                                       and target.ordering = 'key')))
         limit take_waiting.max_rows);

    return query
        with gone as (
            delete from outbox.deliveries as delivery
             where delivery.id in (
                       select free.id
                         from outbox.deliveries as free
                        where free.id = any (array(select one.id from unnest(chosen) as one
                                                    where one.place = 'delivery'))
                          and (free.lease_token is null or free.due_at <= now())
                          for update skip locked)
            returning delivery.id
        )
        select one.* from unnest(chosen) as one
          join gone on gone.id = one.id
         where one.place = 'delivery';

    for part in
        select one.id, range_agg(int8range(one.position, one.position + 1)) as positions
          from unnest(chosen) as one
         where one.place = 'backlog'
         group by one.id
         order by one.id
    loop
        -- A relay may have claimed some of it since.
        select backlog.positions * part.positions into found_now
          from outbox.backlog as backlog
         where backlog.id = part.id
           for update skip locked;
        continue when not found or isempty(found_now);
        update outbox.backlog as backlog set positions = backlog.positions - found_now
         where backlog.id = part.id;
        delete from outbox.backlog as backlog
         where backlog.id = part.id and isempty(backlog.positions);
        ids := ids || part.id;
        taken := taken || found_now;
    end loop;
    return query
        select one.* from unnest(chosen) as one
          join unnest(ids, taken) as now_taken (id, positions) on now_taken.id = one.id
         where one.place = 'backlog' and now_taken.positions @> one.position;

    ids := '{}';
    taken := '{}';
    for part in
        select one.id, range_agg(int4range(one.number, one.number + 1)) as numbers,
               range_agg(int8range(one.number, one.number + 1)) as as_positions
          from unnest(chosen) as one
         where one.place = 'page'
         group by one.id
         order by one.id
    loop
        -- With another token: the relay may only have been frozen, and must not send what is left
        -- under this lease.
        update outbox.pages as page
           set done = page.done + part.numbers, lease_token = gen_random_uuid()
         where page.ctid = (select free.ctid from outbox.pages as free
                             where free.id = part.id and free.due_at <= now()
                               and not free.done && part.numbers
                               for update skip locked);
        continue when not found;
        delete from outbox.pages as page
         where page.id = part.id
           and not exists (select from outbox_internal.left_of(page));
        ids := ids || part.id;
        taken := taken || part.as_positions;
    end loop;
    return query
        select one.* from unnest(chosen) as one
          join unnest(ids, taken) as now_taken (id, numbers) on now_taken.id = one.id
         where one.place = 'page' and now_taken.numbers @> one.number::bigint;
end;
$$;

create function outbox.retry(
    subscription text    default null,
    topic        text    default null,
    event        uuid    default null,
    error_like   text    default null,
    max_rows     integer default 1000
) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    retried bigint;
begin
    insert into outbox.deliveries (
        subscription_id, due_at, position, created_at, owed_since, attempt, unfinished, asked, key,
        replay_id, repeated)
    select taken.subscription_id, clock_timestamp(), taken.position, taken.created_at,
           least(taken.owed_since, clock_timestamp()), taken.attempts, taken.unfinished, true,
           taken.ordered_key, taken.replay_id, taken.repeated
      from outbox_internal.take_waiting(retry.subscription, retry.topic, retry.event,
                                        retry.error_like, retry.max_rows, true) as taken
     order by taken.position;
    get diagnostics retried = row_count;
    if retried > 0 then
        perform outbox_internal.record_audit(
                    'retried', retry.subscription,
                    jsonb_build_object('topic', retry.topic, 'event', retry.event,
                                       'error_like', retry.error_like, 'max_rows', retry.max_rows),
                    retried);
    end if;
    if retried > 0 and current_setting('outbox.doorbell', true) is distinct from 'off' then
        perform pg_notify('outbox_doorbell', 'due');
    end if;
    return retried;
end;
$$;
comment on function outbox.retry is
    'Make matching deliveries due that wait, also behind a breaker. Their attempts go on counting. '
    'Returns how many; call again while it returns max_rows. Those of a paused subscription wait '
    'until it is resumed, and what an application scheduled for later is sent early only if its '
    'event is named.';

create function outbox.cancel(
    subscription text    default null,
    topic        text    default null,
    event        uuid    default null,
    error_like   text    default null,
    max_rows     integer default 1000,
    dead_letters boolean default false
) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    cancelled bigint;
    ids       bigint[];
    keys      text[];
    keep      boolean := coalesce(cancel.dead_letters, false);
begin
    with taken as materialized (
        select one.*
          from outbox_internal.take_waiting(cancel.subscription, cancel.topic, cancel.event,
                                   cancel.error_like, cancel.max_rows, false) as one
    ),
    kept as (
        insert into outbox.dead_letters (
            subscription_id, subscription, reason, status, answer, attempts, event_id, position,
            created_at, topic, key, payload, headers, organization, source, user_id, priority,
            schema_version, replay_id)
        select taken.subscription_id, taken.subscription, 'cancelled', taken.status, taken.answer,
               taken.attempts, event.id, taken.position, taken.created_at,
               coalesce(event.topic, 'unknown'), event.key, coalesce(event.payload, 'null'),
               coalesce(event.headers, '{}'), event.organization, event.source, event.user_id,
               coalesce(event.priority, 0), event.schema_version, taken.replay_id
          from taken
          left join outbox.events as event  -- a deleted event leaves a dead letter too
            on event.position = taken.position
           and event.created_at = taken.created_at
         where keep
    ),
    -- A dead letter counts as failed.
    left_out as (
        update outbox.replays as replay
           set queued = replay.queued - (select count(*) from taken
                                          where taken.replay_id = replay.id)
         where not keep
           and replay.id in (select taken.replay_id from taken)
    )
    select count(*), array_agg(taken.subscription_id) filter (where taken.ordered_key is not null),
           array_agg(taken.ordered_key) filter (where taken.ordered_key is not null)
      into cancelled, ids, keys
      from taken;
    if outbox_internal.promote_keys(ids, keys) > 0
       and current_setting('outbox.doorbell', true) is distinct from 'off' then
        perform pg_notify('outbox_doorbell', 'due');
    end if;
    if cancelled > 0 then
        perform outbox_internal.record_audit(
                    'cancelled', cancel.subscription,
                    jsonb_build_object('topic', cancel.topic, 'event', cancel.event,
                                       'error_like', cancel.error_like,
                                       'max_rows', cancel.max_rows, 'dead_letters', keep),
                    cancelled);
    end if;
    return cancelled;
end;
$$;
comment on function outbox.cancel is
    'Remove matching deliveries that wait: they are never sent. With dead_letters => true each '
    'leaves a dead letter, which can be redriven. What a relay holds is not touched. Returns how '
    'many; call again while it returns max_rows.';

-- A corrected address or configuration makes due what waits for a retry: 100 a second, and all of
-- it within five minutes. The first is asked for: relays then look at all due rows, however late
-- this commits, and it probes an open breaker.
create function outbox_internal.retry_after_correction() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    with waiting as materialized (
        select one.id, row_number() over oldest_first - 1 as n, count(*) over () as all_of_them
          from (select delivery.id, delivery.position
                  from outbox.deliveries as delivery
                 where delivery.subscription_id = new.id
                   and delivery.lease_token is null
                   and delivery.due_at > now()
                   and delivery.due_at < outbox_internal.never()
                   and delivery.owed_since <= now()  -- not what is scheduled for later
                 order by delivery.due_at, delivery.id
                 limit 100000
                   for update skip locked) as one
        window oldest_first as (order by one.position, one.id)
    )
    update outbox.deliveries as delivery
       set due_at = least(delivery.due_at,
                          clock_timestamp()
                          + make_interval(secs => waiting.n
                                                  * least(0.01, 300.0 / waiting.all_of_them))),
           asked  = waiting.n = 0
      from waiting
     where delivery.id = waiting.id;
    if found and current_setting('outbox.doorbell', true) is distinct from 'off' then
        perform pg_notify('outbox_doorbell', 'due');
    end if;
    return null;
end;
$$;

create trigger retry_after_correction after update on outbox.subscriptions
    for each row when ((old.sink, old.config) is distinct from (new.sink, new.config))
    execute function outbox_internal.retry_after_correction();

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
           -- of each delivery the last attempt counts
           round(coalesce(reported.delivered_lately, 0)
                 / nullif(coalesce(reported.delivered_lately, 0) + coalesce(owed.retrying, 0)
                          + coalesce(given_up.lately, 0), 0), 4) as success_rate,
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
                                                   and delivery.lease_token is null
                                                   and delivery.due_at < outbox_internal.never())
                                    as retrying,
                                -- what is not due for the first time has no age
                                min(delivery.owed_since)
                                    filter (where delivery.owed_since <= now()) as oldest
                           from outbox.deliveries as delivery
                          group by delivery.subscription_id
                          union all
                         select backlog.subscription_id,
                                sum(outbox_internal.count_positions(backlog.positions)), 0, 0,
                                min(backlog.owed_since)
                           from outbox.backlog as backlog
                          group by backlog.subscription_id
                          union all
                         select pair.subscription_id, count(*),
                                count(*) filter (where page.due_at > now()), 0,
                                min((select min(since) from unnest(page.owed_since) as since))
                           from outbox.pages as page
                          cross join lateral outbox_internal.left_of(page) as pair
                          group by pair.subscription_id) as one
                  group by one.subscription_id) as owed on owed.subscription_id = subscription.id
      left join (select report.subscription_id, sum(report.delivered)::bigint as delivered,
                        sum(report.failed)::bigint as failed,
                        sum(report.delivered_lately) as delivered_lately,
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
        on reported.subscription_id = subscription.id
      left join (select letter.subscription_id, count(*) as lately
                   from outbox.dead_letters as letter
                  where letter.died_at > now() - interval '15 minutes'
                    and letter.attempts > 0
                  group by letter.subscription_id) as given_up
        on given_up.subscription_id = subscription.id;
comment on view outbox.subscription_status is
    'One row per subscription: pending deliveries, age of the oldest, and reports of running '
    'relays (breaker, filter errors). success_rate: of what was delivered or given up in the last '
    '15 minutes and of what is retried, the share whose last attempt succeeded.';

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
                      and event.position <= cursor.page_after)
                  or exists (select from outbox.routed_early as early
                              where early.position = event.position) as yes
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
                          cross join lateral outbox_internal.left_of(page) as pair
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
    writer text;
begin
    for grant_row in
        select * from (values
            ('outbox_publisher', 'usage on schema outbox, outbox_internal'),
            ('outbox_publisher',
             'insert (id, topic, key, payload, headers, organization, source, user_id, priority, '
             'deliver_after, schema_version) on outbox.events'),
            ('outbox_publisher', 'insert (id) on outbox.event_ids'),
            ('outbox_publisher',
             'execute on function outbox.publish, outbox.published, outbox.new_id'),
            ('outbox_publisher', 'execute on function outbox.wait'),
            ('outbox_publisher', 'execute on function outbox.capture, outbox.release'),
            ('outbox_publisher', 'execute on function outbox.bridge'),
            ('outbox_publisher', 'select on outbox.captures'),
            ('outbox_relay', 'usage on schema outbox, outbox_internal'),
            ('outbox_relay', 'select on all tables in schema outbox'),
            ('outbox_relay', 'select on sequence outbox.events_position_seq'),
            ('outbox_relay',
             'insert, update, delete on outbox.deliveries, outbox.pages, outbox.backlog, '
             'outbox.relays, outbox.relay_subscriptions, outbox.pauses, outbox.order_leases, '
             'outbox.parked_keys'),
            ('outbox_relay', 'insert, update, delete on outbox.gateways'),
            ('outbox_relay', 'insert, update on outbox.subscription_health'),
            ('outbox_relay', 'execute on function outbox_internal.note_backlogs'),
            ('outbox_relay', 'insert on outbox.attempts, outbox.dead_letters'),
            ('outbox_relay', 'insert on outbox.declared_sinks'),
            ('outbox_relay', 'execute on function outbox.declare_sink'),
            ('outbox_relay', 'update on outbox.cursor'),
            ('outbox_relay', 'update on outbox.identity'),
            ('outbox_relay', 'update, delete on outbox.starts'),
            ('outbox_relay', 'update (state, state_reason, owed_until) on outbox.subscriptions'),
            ('outbox_relay', 'execute on function outbox_internal.halt'),
            ('outbox_relay', 'update on outbox.replays'),
            ('outbox_relay', 'update on outbox.paces'),
            ('outbox_relay', 'insert, delete on outbox.routed_early'),
            ('outbox_relay', 'update (state_reason) on outbox.event_types'),
            ('outbox_relay', 'execute on function outbox_internal.declare_handler'),
            ('outbox_relay', 'execute on function outbox.wait, outbox.latest'),
            ('outbox_relay',
             'execute on function outbox_internal.make_partition, outbox_internal.drop_partition, '
             'outbox_internal.delete_old, outbox_internal.keep_for_ever'),
            ('outbox_admin', 'usage on schema outbox, outbox_internal'),
            ('outbox_admin', 'select on all tables in schema outbox'),
            ('outbox_admin', 'select on sequence outbox.events_position_seq'),
            ('outbox_admin',
             'insert, update, delete on outbox.subscriptions, outbox.starts, '
             'outbox.declared_sinks'),
            ('outbox_admin', 'insert, update, delete on outbox.event_types'),
            ('outbox_admin', 'insert, update, delete on outbox.organization_limits'),
            ('outbox_admin', 'execute on all functions in schema outbox, outbox_internal'),
            ('outbox_monitor', 'usage on schema outbox, outbox_internal'),
            ('outbox_monitor',
             'select on outbox.subscription_status, outbox.event_status, outbox.log_status, '
             'outbox.relays, '
             'outbox.relay_subscriptions'),
            ('outbox_monitor', 'select on outbox.identity, outbox.here, outbox.cursor'),
            ('outbox_monitor', 'select on sequence outbox.events_position_seq'),
            ('outbox_monitor', 'select on outbox.captures'),
            ('outbox_monitor', 'select on outbox.audit'),
            ('outbox_monitor', 'execute on function outbox.wait'),
            ('outbox_monitor', 'select on outbox.replay_status'),
            ('outbox_monitor', 'select on outbox.gateways, outbox.forgotten'),
            ('outbox_monitor',
             'select on outbox.retention_status, outbox.retention_periods, '
             'outbox.retention_kept')
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
    -- What these write is the word of the functions that call them, or of relays.
    foreach writer in array array['record_audit', 'audit_replay', 'make_partition',
                                  'drop_partition', 'delete_old', 'keep_for_ever'] loop
        begin
            execute format(
                'revoke execute on function outbox_internal.%I from outbox_admin', writer);
        exception
            when undefined_function or undefined_object then null;
        end;
    end loop;
    -- What most helpers do, they do with the rights of the caller.
    for grant_row in
        select proc.oid::regprocedure as helper, wanted.role
          from pg_catalog.pg_proc as proc
         cross join unnest(array['outbox_publisher', 'outbox_relay', 'outbox_monitor'])
               as wanted (role)
          join pg_catalog.pg_roles as known on known.rolname = wanted.role
         where proc.pronamespace = 'outbox_internal'::regnamespace
           and (not proc.prosecdef or proc.proname in ('capture_changes', 'bridge_rows'))
         order by proc.proname, wanted.role
    loop
        execute format('grant execute on function %s to %I', grant_row.helper, grant_row.role);
    end loop;
    -- Captured writes run with the rights of the owner of capture_changes. As a publisher it keeps
    -- them when somebody else becomes the owner of the tables.
    for grant_row in
        select distinct pg_catalog.pg_get_userbyid(proc.proowner) as role
          from pg_catalog.pg_proc as proc
          join pg_catalog.pg_roles as owner on owner.oid = proc.proowner and not owner.rolsuper
         where proc.pronamespace = 'outbox_internal'::regnamespace
           and proc.proname = 'capture_changes'
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

comment on function outbox.grant_roles is
    'Grant the groups outbox_publisher, outbox_relay, outbox_admin and outbox_monitor their '
    'rights. Run it after creating one of them. Returns the statements that it ran.';

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
