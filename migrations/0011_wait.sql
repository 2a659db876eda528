-- Waiting for an event after its commit, and the newest event of each key to begin from.

-- Where an event is. An id of version 7 begins with its time, and outbox.event_ids has that of an
-- id that was given; only another one is looked for everywhere.
create function outbox_internal.find_event(event uuid)
returns table ("position" bigint, created_at timestamptz, xid xid8)
language sql stable as $$
    with id as (
        select given.at,
               coalesce(given.at, to_timestamp(given.milliseconds / 1000.0)) as near,
               given.at is not null or given.version = '7' as is_dated
          from (select (select known.created_at
                          from outbox.event_ids as known
                         where known.id = find_event.event) as at,
                       ('x' || left(replace(find_event.event::text, '-', ''), 12))::bit(48)::bigint
                           as milliseconds,
                       substring(find_event.event::text from 15 for 1) as version) as given
    )
    select found.position, found.created_at, found.xid
      from (select one.position, one.created_at, one.xid
              from id
              join outbox.events as one
                on one.created_at between id.near - interval '1 hour' and id.near + interval '1 day'
             where one.id = find_event.event
            union all
            select one.position, one.created_at, one.xid
              from outbox.events as one
             where one.id = find_event.event
               and not (select id.is_dated from id)) as found
     limit 1
$$;

-- Runs as its owner, because publishers may not read the log: who knows the id of an event learns
-- what became of it, and nothing else. It writes nothing, so that it has no transaction id.
create function outbox.wait(event uuid, timeout interval default '10s') returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off as $$
declare
    began   timestamptz := clock_timestamp();
    looked  timestamptz;
    place   record;
    status  text;
    pause   double precision := 0.01;
    left_to_wait double precision;
begin
    if wait.event is null then
        raise exception using errcode = '22023', message = 'event: is null',
            hint = 'Give the id that outbox.publish returned.';
    end if;
    if wait.timeout is null or wait.timeout <= interval '0' or wait.timeout > interval '1 hour' then
        raise exception using errcode = '22023',
            message = format('timeout: %s is not above 0 and at most 1 hour',
                             coalesce(wait.timeout::text, 'null')),
            hint = 'For example ''10s''. Call it again to wait longer.';
    end if;
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        raise exception using errcode = '22023',
            message = format('outbox.wait cannot see progress in a transaction that is %s',
                             current_setting('transaction_isolation')),
            hint = 'Call it outside of a transaction, or in one that is read committed.';
    end if;
    loop
        looked := clock_timestamp();
        if place is null then
            select * into place from outbox_internal.find_event(wait.event);
            if not found then
                if exists (select from outbox.dead_letters as letter
                            where letter.event_id = wait.event) then
                    return 'failed';
                end if;
                raise exception using errcode = '22023',
                    message = format('event: there is no event %s, and no dead letter of it',
                                     wait.event),
                    hint = 'Its transaction has not committed or was rolled back, or the event '
                           'was removed from the log.';
            end if;
            if place.xid = pg_current_xact_id_if_assigned() then
                raise exception using errcode = '22023',
                    message = format('event: %s was published by this transaction, and is sent '
                                     'only after its commit',
                                     wait.event),
                    hint = 'Commit first, then call outbox.wait.';
            end if;
        end if;
        select current.status into status
          from outbox.event_status as current
         where current.position = place.position
           and current.created_at = place.created_at
           and current.id = wait.event;
        if not found then
            place := null;  -- it was removed meanwhile
            continue;
        end if;
        if status in ('completed', 'failed') then
            return status;
        end if;
        left_to_wait := extract(epoch from began + wait.timeout - clock_timestamp());
        if left_to_wait <= 0 then
            return 'pending';
        end if;
        -- Where a look takes long, because much is owed, it is made less often.
        perform pg_sleep(least(left_to_wait,
                               greatest(pause,
                                        4 * extract(epoch from clock_timestamp() - looked))));
        pause := least(pause * 1.5, 0.25);
    end loop;
end;
$$;
comment on function outbox.wait is
    'Wait after the commit until nothing is owed of an event, at most for a timeout of up to an '
    'hour. Returns completed, failed (there is a dead letter), or pending: the time is over. An '
    'event that nobody wants is completed. While a call lasts it holds its connection and keeps '
    'vacuum back, so call it again rather than for long.';

-- With the rights of the caller, who must be allowed to read the log.
create function outbox.latest(
    topics       text[],
    since        timestamptz default null,
    organization text        default null,
    max_events   integer     default 1000000
) returns setof outbox.events
language plpgsql stable as $$
declare
    expression  text;  -- of all patterns
    reserved    text;  -- of those that match operators' events
    pattern     text;
    looked_at   bigint;
begin
    if latest.topics is null or cardinality(latest.topics) not between 1 and 100 then
        raise exception using errcode = '22023',
            message = 'topics: must be an array of 1 to 100 topic patterns',
            hint = 'For example array[''shop.orders.*''].';
    end if;
    foreach pattern in array latest.topics loop
        if pattern is null then
            raise exception using errcode = '22023', message = 'topics: has a null',
                hint = 'For example array[''shop.orders.*''].';
        end if;
        expression := concat_ws('|', expression, outbox_internal.topic_expression(pattern));
        if starts_with(pattern, 'outbox.') then
            reserved := concat_ws('|', reserved, outbox_internal.topic_expression(pattern));
        end if;
    end loop;
    if latest.max_events is null or latest.max_events not between 1 and 100000000 then
        raise exception using errcode = '22023',
            message = format('max_events: %s is not between 1 and 100000000',
                             coalesce(latest.max_events::text, 'null'));
    end if;
    -- What is not looked at might hold the newest event of a key: that is refused, not left out.
    select count(*) into looked_at
      from (select from outbox.events as event
             where latest.since is null or event.created_at >= latest.since
             limit latest.max_events + 1) as event;
    if looked_at > latest.max_events then
        raise exception using errcode = '22023',
            message = format('max_events: the log has more than %s events to look at',
                             latest.max_events),
            hint = 'Give since, to look only at newer ones, or a larger max_events.';
    end if;
    return query
        select event.*
          from (select distinct on (one.organization, one.key) one.position, one.created_at
                  from outbox.events as one
                 where one.key is not null
                   and (latest.since is null or one.created_at >= latest.since)
                   and (latest.organization is null or one.organization = latest.organization)
                   and case when starts_with(one.topic, 'outbox.')
                            then ('.' || one.topic) ~ reserved
                            else ('.' || one.topic) ~ expression end
                 order by one.organization, one.key, one.position desc) as newest
          join outbox.events as event
            on event.position = newest.position
           and event.created_at = newest.created_at
         order by event.position;
end;
$$;
comment on function outbox.latest is
    'The newest event of each key (and organization) among those whose topic matches a pattern, in '
    'the order of positions, to begin from. Events without a key are left out. Reads the log, from '
    'since on if it is given, and refuses to read more than max_events.';

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
