-- What leaves by its age: partitions of the log and of the delivery log, ids given by publishers,
-- and dead letters if that is wanted. Relays call these functions every minute, a step in each
-- call. A lock that publishers could wait behind is waited for no longer than 100 ms.

-- What the last look found.
create table outbox.retention_periods (
    log       text        primary key,
    period    interval    not null,                -- as the relay said that looked last
    laggard   text,
    looked_at timestamptz not null,
    problem   text                                 -- why no partition could be made or dropped
);
comment on table outbox.retention_periods is
    'For how long relays keep the events, attempts, event_ids and dead_letters, as said by the '
    'relay that looked last.';
create table outbox.retention_kept (
    partition text        primary key,
    log       text        not null,
    since     timestamptz not null,
    kept_by   text        not null
);
comment on table outbox.retention_kept is
    'Partitions that are due to be dropped and stay, with the reason. See outbox.retention_status.';
-- Transaction ids by time: a token of a live client that is younger than the period must not become
-- too old because of an event that was published later with an old created_at.
create table outbox.retention_marks (
    at  timestamptz primary key,
    xid xid8        not null
);
comment on table outbox.retention_marks is
    'Transaction ids by time, a few for each partition of outbox.events.';

-- Old ids, which relays delete. It grows at its right end.
create index event_ids_created_at on outbox.event_ids (created_at);

-- The time that a partition covers: a tenth of the period, from an hour to 31 days.
create function outbox_internal.partition_width(period interval) returns interval
language sql immutable strict parallel safe as $$
    select make_interval(secs => least(greatest(floor(extract(epoch from period) / 10), 3600),
                                       31 * 86400))
$$;

-- The first border of partitions after this time. Borders are multiples of the width.
create function outbox_internal.border_after(at timestamptz, width interval) returns timestamptz
language sql immutable strict parallel safe as $$
    select to_timestamp((floor(extract(epoch from at) / extract(epoch from width)) + 1)
                        * extract(epoch from width))
$$;

-- The partitions of a log but for the default one, from the oldest. `is_plain` is false for one
-- that is partitioned itself, or a foreign table: these are never dropped.
create function outbox_internal.log_partitions(log text)
returns table (relation regclass, low timestamptz, high timestamptz, is_plain boolean)
language sql stable
set search_path = pg_catalog, pg_temp set datestyle = 'ISO' set timezone = 'UTC' as $$
    select part.relation,
           case part.bounds[1] when 'MINVALUE' then '-infinity'
                else trim('''' from part.bounds[1])::timestamptz end,
           case part.bounds[2] when 'MAXVALUE' then 'infinity'
                else trim('''' from part.bounds[2])::timestamptz end,
           part.is_plain
      from (select class.oid::regclass as relation, class.relkind = 'r' as is_plain,
                   regexp_match(pg_get_expr(class.relpartbound, class.oid),
                                '^FOR VALUES FROM [(](.*)[)] TO [(](.*)[)]$') as bounds
              from pg_inherits as child
              join pg_class as class on class.oid = child.inhrelid
             where child.inhparent = to_regclass(format('outbox.%I', log_partitions.log))) as part
     where part.bounds is not null
     order by 2
$$;

-- The column that a log is partitioned by; refuses other names and periods.
create function outbox_internal.log_column(log text, period interval) returns name
language plpgsql immutable as $$
begin
    if log is null or log not in ('events', 'attempts') then
        raise exception using errcode = '22023',
            message = format('log: %L is neither events nor attempts', log);
    end if;
    perform outbox_internal.check_period(period);
    return case log when 'events' then 'created_at' else 'at' end;
end;
$$;

create function outbox_internal.check_period(period interval) returns void
language plpgsql immutable as $$
begin
    if period is null or period < interval '1 hour' or period > interval '100 years' then
        raise exception using errcode = '22023',
            message = format('period: %s is not between an hour and 100 years', period);
    end if;
end;
$$;

create function outbox_internal.note_period(
    log     text,
    period  interval,
    laggard text,
    at      timestamptz,
    problem text
) returns void
language sql as $$
    insert into outbox.retention_periods as known (log, period, laggard, looked_at, problem)
    values (note_period.log, note_period.period, note_period.laggard, note_period.at,
            note_period.problem)
    on conflict on constraint retention_periods_pkey do update
       set period = excluded.period,
           laggard = coalesce(excluded.laggard, known.laggard),
           looked_at = excluded.looked_at,
           problem = excluded.problem
$$;

-- While a default partition is fenced no row of it may have this time or a later one. The fence is
-- a check, so that a partition can be attached without a scan under a lock. A publisher whose time
-- is behind the fence, because the relay that made the fence has gone and none came, does not fail:
-- the time of its row is set before the fence.
create function outbox_internal.stay_before_fence() returns trigger
language plpgsql as $$
begin
    if tg_argv[0] = 'at' then
        new.at := least(new.at, tg_argv[1]::timestamptz - interval '1 microsecond');
    else
        new.created_at := least(new.created_at, tg_argv[1]::timestamptz - interval '1 microsecond');
    end if;
    return new;
end;
$$;

create function outbox_internal.fence(rest regclass, key name, fence timestamptz) returns void
language plpgsql as $$
begin
    -- The trigger first: no insert can come in between, for both need the lock of the table.
    execute format('lock table only %s in access exclusive mode', rest);
    execute format('create trigger retention_fence before insert on %s for each row '
                   'execute function outbox_internal.stay_before_fence(%L, %L)', rest, key, fence);
    execute format('alter table %s add constraint retention_fence check (%I < %L) not valid',
                   rest, key, fence);
    execute format('comment on constraint retention_fence on %s is %L', rest, fence);
end;
$$;

create function outbox_internal.unfence(rest regclass) returns void
language plpgsql as $$
begin
    execute format('lock table only %s in access exclusive mode', rest);
    if exists (select from pg_constraint as fenced
                where fenced.conrelid = rest and fenced.conname = 'retention_fence') then
        execute format('alter table %s drop constraint retention_fence', rest);
        execute format('drop trigger retention_fence on %s', rest);
    end if;
end;
$$;

-- What each partition needs that attaching it does not bring.
create function outbox_internal.finish_partition(part regclass, log text) returns void
language plpgsql as $$
declare
    owner name := (select pg_get_userbyid(class.relowner) from pg_class as class
                    where class.oid = to_regclass(format('outbox.%I', log)));
begin
    -- so that a publication for all tables forbids no delete
    execute format('alter table %s replica identity full', part);
    if log = 'events' then
        perform outbox_internal.watch_partition(part);
    end if;
    if owner <> current_user then
        execute format('alter table %s owner to %I', part, owner);
    end if;
end;
$$;

-- The triggers of outbox_internal.watch_partitions, for one table that may not be attached yet.
create function outbox_internal.watch_partition(part regclass) returns void
language plpgsql as $$
begin
    execute format('create trigger forget_deleted after delete on %s '
                   'referencing old table as removed '
                   'for each statement execute function outbox_internal.forget_deleted()', part);
    execute format('create trigger forget_truncated before truncate on %s '
                   'for each statement execute function outbox_internal.forget_truncated()', part);
end;
$$;

-- The default partition becomes a partition of everything before a border, and a new and empty one
-- takes its place. No row is moved. Without a fence the table is scanned meanwhile.
create function outbox_internal.convert_default(log text, rest regclass, border timestamptz)
returns text
language plpgsql as $$
declare
    parent  text := format('outbox.%I', log);
    renamed text := format('%s_until_%s', log,
                           to_char(border at time zone 'UTC', 'YYYYMMDD"t"HH24MI'));
begin
    -- A standby that confirms commits late must not make publishers wait: nothing is lost with it.
    perform set_config('synchronous_commit', 'local', true);
    execute format('lock table only %s in access exclusive mode', parent);
    execute format('lock table only %s in access exclusive mode', rest);
    execute format('alter table %s detach partition %s', parent, rest);
    execute format('alter table %s rename to %I', rest, renamed);
    execute format('alter table %s attach partition %s for values from (minvalue) to (%L)',
                   parent, rest, border);
    perform outbox_internal.unfence(rest);
    execute format('create table outbox.%I partition of %s default', log || '_default', parent);
    perform outbox_internal.finish_partition(
                to_regclass(format('outbox.%I', log || '_default')), log);
    return renamed;
end;
$$;

-- Creates a partition apart and attaches it, which waits for no publisher. Indexes are created with
-- the table, while nobody sees it.
create function outbox_internal.add_partition(log text, low timestamptz, high timestamptz)
returns text
language plpgsql as $$
declare
    parent text := format('outbox.%I', log);
    made   text := format('%s_%s', log, to_char(low at time zone 'UTC', 'YYYYMMDD"t"HH24MI'));
    part   regclass;
begin
    perform set_config('synchronous_commit', 'local', true);
    if to_regclass(format('outbox.%I', made)) is not null then
        made := made || to_char(low at time zone 'UTC', 'SS') || '_'
                || to_char(high at time zone 'UTC', 'YYYYMMDD"t"HH24MI');
    end if;
    execute format('create table outbox.%I (like %s including all excluding identity)',
                   made, parent);
    part := to_regclass(format('outbox.%I', made));
    perform outbox_internal.finish_partition(part, log);
    execute format('alter table %s attach partition %s for values from (%L) to (%L)',
                   parent, part, low, high);
    return made;
end;
$$;

-- A default partition of more bytes than this is not scanned under a lock.
create function outbox_internal.scanned_at_once() returns bigint
language sql immutable parallel safe as $$ select 8388608::bigint $$;

-- One step towards a whole partition ahead. Returns what was done, null when nothing is to
-- be done; `problem` is why it cannot be done now.
create function outbox_internal.make_partition_at(
    log     text,
    period  interval,
    at      timestamptz,
    out done text,
    out partition text,
    out problem text
)
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms' set datestyle = 'ISO' set timezone = 'UTC' as $$
declare
    key    name := outbox_internal.log_column(log, period);
    width  interval := outbox_internal.partition_width(period);
    parent regclass := to_regclass(format('outbox.%I', log));
    rest   regclass;
    top    timestamptz;  -- end of the last partition
    fence  timestamptz;
    valid  boolean;
    low    timestamptz;
begin
    -- One relay at a time.
    if not pg_try_advisory_xact_lock(7411005) then
        done := 'busy';
        return;
    end if;
    select nullif(tree.partdefid, 0) into rest
      from pg_partitioned_table as tree where tree.partrelid = parent;
    if rest is null then
        execute format('create table outbox.%I partition of %s default', log || '_default', parent);
        perform outbox_internal.finish_partition(
                    to_regclass(format('outbox.%I', log || '_default')), log);
        done := 'made';
        partition := log || '_default';
        return;
    end if;
    select max(part.high) into top from outbox_internal.log_partitions(log) as part;
    select obj_description(fenced.oid, 'pg_constraint')::timestamptz, fenced.convalidated
      into fence, valid
      from pg_constraint as fenced
     where fenced.conrelid = rest and fenced.conname = 'retention_fence';

    if fence is not null and (fence <= at or top >= at + width) then
        -- it stood for too long, or is needed no longer
        perform outbox_internal.unfence(rest);
        done := 'unfenced';
        return;
    end if;
    if top >= at + width then
        return;
    end if;
    if fence is not null and not valid then
        -- publishers write meanwhile
        execute format('alter table %s validate constraint retention_fence', rest);
        done := 'validated';
        return;
    end if;
    if fence is null and pg_relation_size(rest) > outbox_internal.scanned_at_once() then
        low := case when top is null or top <= at
                    then outbox_internal.border_after(at + width, width)
                    -- what is set before the fence must not belong to the last partition
                    else top + interval '1 second' end;
        perform outbox_internal.fence(rest, key, low);
        done := 'fenced';
        return;
    end if;
    if top is null then
        partition := outbox_internal.convert_default(
                         log, rest,
                         coalesce(fence, outbox_internal.border_after(at + width, width)));
        done := 'converted';
        return;
    end if;
    -- When no relay came for long, the default partition has rows of a time up to now. They stay.
    low := case when fence is not null then greatest(fence, top)
                when top > at then top
                else outbox_internal.border_after(at + width, width) end;
    partition := outbox_internal.add_partition(log, low, outbox_internal.border_after(low, width));
    done := 'made';
exception
    when lock_not_available or deadlock_detected then
        done := 'locked';
        partition := null;
    when check_violation then
        done := 'refused';
        partition := null;
        problem := format('%s has rows of a time in the future, so that no partition can be made '
                          'for it: %s', rest, sqlerrm);
end;
$$;

-- Why a partition whose time has passed must stay; null: nothing is owed of it. Read in one
-- statement: what is owed moves between these tables, and is always in one of them.
--   laggard  with 'dead-letter' dead letters keep nothing, for they are copies
--   mark     transaction id at the beginning of the period; null: not known
create function outbox_internal.kept_by(
    part    regclass,
    low     timestamptz,
    high    timestamptz,
    laggard text,
    mark    xid8
) returns text
language plpgsql stable
set enable_seqscan = on set plan_cache_mode = force_custom_plan as $$
declare
    first      bigint;
    last       bigint;
    newest     xid8;
    reason     text;
begin
    execute format('select (select min(event.position) from %1$s as event), '
                   '(select max(event.position) from %1$s as event), '
                   '(select event.xid from %1$s as event order by event.xid desc limit 1)', part)
       into first, last, newest;
    if first is null then
        return null;
    end if;
    execute format($f$
        with routed as (
            select cursor.settled from outbox.cursor as cursor order by cursor.step desc limit 1
        )
        select case
            when exists (
                    select from %1$s as event
                     where event.xid >= (select pg_snapshot_xmin(routed.settled) from routed)
                       and event.created_at < $2
                       and not pg_visible_in_snapshot(event.xid,
                                                      (select routed.settled from routed)))
              or exists (select from outbox.routed_early as early
                          where early.created_at >= $1 and early.created_at < $2)
            then 'events that are not routed'
            else coalesce(
                (select 'the start of ' || subscription.name
                   from outbox.starts as start
                   join outbox.subscriptions as subscription
                     on subscription.id = start.subscription_id
                  where start.settled is null
                     or (start.position < $4
                         and coalesce(start.until, $4) >= $3
                         and coalesce(start.since, '-infinity') < $2)
                  order by subscription.name limit 1),
                (select 'replay ' || replay.id
                   from outbox.replays as replay
                  where replay.state in ('running', 'paused')
                    and replay.position < $4 and replay.until_position >= $3
                    and replay.since < $2 and coalesce(replay.until, 'infinity') > $1
                  order by replay.id limit 1),
                (select 'deliveries of relay ' || page.relay
                   from outbox.pages as page
                  where page.created_from < $2 and page.created_until >= $1
                  limit 1),
                (select 'the backlog of ' || coalesce(
                            (select one.name from outbox.subscriptions as one
                              where one.id = waiting.subscription_id), 'a subscription')
                   from outbox.backlog as waiting
                  where waiting.created_from < $2 and waiting.created_until >= $1
                    and waiting.positions && int8range($3, $4, '[]')
                    and exists (
                            select
                              from unnest(waiting.positions
                                          * int8multirange(int8range($3, $4, '[]'))) as span
                             cross join lateral (
                                   select from %1$s as event
                                    where event.position >= lower(span)
                                      and event.position < upper(span)
                                    limit 1) as found)
                  limit 1),
                (select 'deliveries of ' || coalesce(
                            (select one.name from outbox.subscriptions as one
                              where one.id = delivery.subscription_id), 'a subscription')
                   from outbox.deliveries as delivery
                  where delivery.created_at >= $1 and delivery.created_at < $2
                  limit 1),
                (select 'dead letters of ' || letter.subscription
                   from outbox.dead_letters as letter
                  where letter.position between $3 and $4
                    and letter.created_at >= $1 and letter.created_at < $2
                    and $5 is distinct from 'dead-letter'
                  limit 1))
        end$f$, part)
       into reason
      using low, high, first, last, laggard;
    return coalesce(reason, case when newest >= mark
                                 then 'live clients: it has events that were published later' end);
end;
$$;

-- Copies what is owed of a partition into dead letters, at most 500 in a call, for laggard =
-- 'dead-letter'. What is leased is left to its relay. Returns how many.
create function outbox_internal.copy_owed(part regclass, low timestamptz, high timestamptz)
returns bigint
language plpgsql
set enable_seqscan = on set plan_cache_mode = force_custom_plan as $$
declare
    subscriptions bigint[];
    those         bigint[];
    attempts      integer[];
    replays       bigint[];
    waiting_row   outbox.backlog;
    whole         int8multirange;
    ids           bigint[];
    keys          text[];
begin
    with dying as (
        delete from outbox.deliveries as delivery
         where delivery.id = any (array(
                   select one.id from outbox.deliveries as one
                    where one.created_at >= low and one.created_at < high
                      and (one.lease_token is null or one.due_at < clock_timestamp())
                    order by one.id
                    limit 500
                      for update skip locked))
        returning delivery.subscription_id, delivery.position, delivery.attempt, delivery.replay_id
    )
    select array_agg(dying.subscription_id), array_agg(dying.position), array_agg(dying.attempt),
           array_agg(dying.replay_id)
      into subscriptions, those, attempts, replays
      from dying;
    if those is null then
        execute format('select int8multirange(int8range(min(event.position), max(event.position), '
                       '%L)) from %s as event', '[]', part)
           into whole;
        for waiting_row in
            select waiting.* from outbox.backlog as waiting
             where waiting.created_from < high and waiting.created_until >= low
               and waiting.positions && whole
             order by waiting.id
               for update skip locked
        loop
            execute format('select array_agg(event.position) from (select one.position '
                           'from unnest($1) as span '
                           'cross join lateral (select event.position, event.created_at '
                           'from %s as event where event.position >= lower(span) '
                           'and event.position < upper(span) '
                           'order by event.position limit 500) as one '
                           'where one.created_at >= $2 and one.created_at < $3 '
                           'order by one.position limit 500) as event', part)
               into those
              using waiting_row.positions * whole, low, high;
            continue when those is null;
            update outbox.backlog as waiting
               set positions = waiting.positions
                               - (select range_agg(int8range(at, at, '[]'))
                                    from unnest(those) as at)
             where waiting.id = waiting_row.id;
            delete from outbox.backlog as waiting
             where waiting.id = waiting_row.id and isempty(waiting.positions);
            subscriptions := array_fill(waiting_row.subscription_id, array[cardinality(those)]);
            attempts := array_fill(0, array[cardinality(those)]);
            replays := array_fill(null::bigint, array[cardinality(those)]);
            exit;
        end loop;
    end if;
    if those is null then
        return 0;
    end if;
    execute format($f$
        with buried as (
            insert into outbox.dead_letters (
                subscription_id, subscription, reason, attempts, event_id, position, created_at,
                topic, key, payload, headers, organization, source, user_id, priority,
                schema_version, replay_id)
            select owed.subscription_id, subscription.name, 'retention', owed.attempt, event.id,
                   event.position, event.created_at, event.topic, event.key, event.payload,
                   event.headers, event.organization, event.source, event.user_id, event.priority,
                   event.schema_version, owed.replay_id
              from unnest($1, $2, $3, $4)
                   as owed (subscription_id, "position", attempt, replay_id)
              join outbox.subscriptions as subscription on subscription.id = owed.subscription_id
              join %s as event on event.position = owed.position
             order by event.position
            returning id, subscription_id, key
        ),
        ordered as (
            select buried.*, subscription.on_exhausted
              from buried
              join outbox.subscriptions as subscription
                on subscription.id = buried.subscription_id and subscription.ordering = 'key'
             where buried.key is not null
        ),
        parked as (
            insert into outbox.parked_keys (subscription_id, key, dead_letter_id)
            select ordered.subscription_id, ordered.key, ordered.id
              from ordered
             where ordered.on_exhausted = 'park'
             order by ordered.id
            on conflict do nothing
        )
        select array_agg(ordered.subscription_id), array_agg(ordered.key) from ordered$f$, part)
       into ids, keys
      using subscriptions, those, attempts, replays;
    perform outbox_internal.promote_keys(ids, keys);
    return cardinality(those);
end;
$$;

-- Drops the oldest partition whose time has passed and that nothing is owed of. With laggard =
-- 'dead-letter' a call may instead copy a part of what is owed. Rows of the default partition that
-- are too old are deleted, at most 5,000 in a call. `done` is null when nothing is left to do.
create function outbox_internal.drop_partition_at(
    log     text,
    period  interval,
    laggard text,
    at      timestamptz,
    out done text,
    out partition text,
    out rows bigint
)
language plpgsql
set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
set datestyle = 'ISO' set timezone = 'UTC'
set enable_seqscan = on set enable_bitmapscan = on as $$
declare
    key    name := outbox_internal.log_column(log, period);
    parent regclass := to_regclass(format('outbox.%I', log));
    rest   regclass;
    mark   xid8;
    part   record;
    reason text;
    last_delivery bigint;
    last_backlog  bigint;
    last_replay   bigint;
    last_subscription bigint;
    highest xid8;
    newest timestamptz;
    last   bigint;
    lowest timestamptz;
begin
    if laggard is null or laggard not in ('keep', 'dead-letter') then
        raise exception using errcode = '22023',
            message = format('laggard: %L is neither keep nor dead-letter', laggard);
    end if;
    if not pg_try_advisory_xact_lock(7411005) then
        done := 'busy';
        return;
    end if;
    if log = 'events' then
        if not exists (select from outbox.retention_marks as known
                        where known.at > drop_partition_at.at
                                         - outbox_internal.partition_width(period) / 4) then
            insert into outbox.retention_marks
            values (drop_partition_at.at, pg_snapshot_xmax(pg_current_snapshot()))
            on conflict do nothing;
        end if;
        select known.xid into mark from outbox.retention_marks as known
         where known.at <= drop_partition_at.at - period
         order by known.at desc limit 1;
        delete from outbox.retention_marks as known
         where known.at < drop_partition_at.at - period
                          - outbox_internal.partition_width(period);
    end if;
    select nullif(tree.partdefid, 0) into rest
      from pg_partitioned_table as tree where tree.partrelid = parent;
    delete from outbox.retention_kept as kept
     where kept.log = drop_partition_at.log
       and to_regclass(format('outbox.%I', kept.partition)) is distinct from rest
       and not exists (select from outbox_internal.log_partitions(drop_partition_at.log) as one
                        where one.relation = to_regclass(format('outbox.%I', kept.partition))
                          and one.high <= drop_partition_at.at - period);

    for part in
        select one.relation, one.low, one.high, class.relname
          from outbox_internal.log_partitions(log) as one
          join pg_class as class on class.oid = one.relation
         where one.is_plain and one.high <= drop_partition_at.at - period
         order by one.high
    loop
        begin
            -- Nothing is written to it from here on, so what is checked stays true. Its time is
            -- long past: no publisher waits for this.
            execute format('lock table only %s in share mode', part.relation);
            if log = 'events' then
                select coalesce(max(one.id), 0) into last_delivery from outbox.deliveries as one;
                select coalesce(max(one.id), 0) into last_backlog from outbox.backlog as one;
                select coalesce(max(one.id), 0) into last_replay from outbox.replays as one;
                select coalesce(max(one.id), 0) into last_subscription
                  from outbox.subscriptions as one;
                reason := outbox_internal.kept_by(part.relation, part.low, part.high, laggard,
                                                  mark);
                if reason is null then
                    execute format(
                        'select (select one.xid from %1$s as one order by one.xid desc limit 1), '
                        '(select max(one.created_at) from %1$s as one), '
                        '(select max(one.position) from %1$s as one)', part.relation)
                       into highest, newest, last;
                end if;
            end if;
            if reason is null then
                perform set_config('synchronous_commit', 'local', true);
                execute format('lock table only %s in access exclusive mode', parent);
                -- What somebody asked for since the check. It needed to read the log, which nobody
                -- does now.
                if log = 'events' and (
                       exists (select from outbox.deliveries as one
                                where one.id > last_delivery
                                  and one.created_at >= part.low and one.created_at < part.high)
                       or exists (select from outbox.backlog as one
                                   where one.id > last_backlog
                                     and one.created_from < part.high
                                     and one.created_until >= part.low)
                       or exists (select from outbox.pages as one
                                   where one.created_from < part.high
                                     and one.created_until >= part.low)
                       or exists (select from outbox.replays as one where one.id > last_replay)
                       or exists (select from outbox.subscriptions as one
                                   where one.id > last_subscription)) then
                    raise exception using errcode = '55P03', message = 'it was asked for meanwhile';
                end if;
                if log = 'events' then
                    perform outbox_internal.forget_events(highest, newest, last);
                end if;
                execute format('drop table %s', part.relation);
                delete from outbox.retention_kept as kept where kept.partition = part.relname;
                done := 'dropped';
                partition := part.relname;
                return;
            end if;
        exception
            when lock_not_available or deadlock_detected then
                reason := 'a lock: ' || sqlerrm;
                done := 'locked';
        end;
        insert into outbox.retention_kept as kept (partition, log, since, kept_by)
        values (part.relname, log, at, reason)
        on conflict on constraint retention_kept_pkey do update set kept_by = excluded.kept_by;
        partition := part.relname;
        if done = 'locked' then
            return;
        end if;
        if laggard = 'dead-letter' then
            rows := outbox_internal.copy_owed(part.relation, part.low, part.high);
            if rows > 0 then
                done := 'copied';
                return;
            end if;
        end if;
    end loop;
    partition := null;

    -- What lies in the default partition: of a time for which no relay had made one, or put back.
    select class.relname into partition from pg_class as class where class.oid = rest;
    execute format('select one.%1$I from %2$s as one where one.%1$I < $1 limit 1', key, rest)
       into lowest
      using at - period;
    reason := case when lowest is not null and log = 'events'
                   then outbox_internal.kept_by(rest, '-infinity', at - period, laggard, null) end;
    if reason is not null then
        insert into outbox.retention_kept as kept (partition, log, since, kept_by)
        values (partition, log, at, reason)
        on conflict on constraint retention_kept_pkey do update set kept_by = excluded.kept_by;
        if laggard = 'dead-letter' then
            rows := outbox_internal.copy_owed(rest, '-infinity', at - period);
            done := case when rows > 0 then 'copied' end;
        end if;
        return;
    end if;
    delete from outbox.retention_kept as kept where kept.partition = drop_partition_at.partition;
    if lowest is null then
        return;
    end if;
    execute format('delete from %2$s as one where one.ctid = any (array('
                   'select old.ctid from %2$s as old where old.%1$I < $1 %3$s limit 5000 '
                   'for update skip locked))', key, rest,
                   case when log = 'events' then 'and ($2 is null or old.xid < $2)' else '' end)
      using at - period, mark;
    get diagnostics rows = row_count;
    done := case when rows > 0 then 'deleted' end;
end;
$$;

-- Deletes ids given by publishers, or dead letters, that are older than a period: at most 5,000 in
-- a call. Returns how many, and the newest time among them, below which the next call need not
-- look.
create function outbox_internal.delete_old_at(
    what   text,
    period interval,
    after  timestamptz,
    at     timestamptz,
    out rows bigint,
    out newest timestamptz
)
language plpgsql
set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_custom_plan as $$
declare
    gone bigint[];
begin
    perform outbox_internal.check_period(period);
    if what = 'event_ids' then
        with old as (
            delete from outbox.event_ids as one
             where one.id = any (array(
                       select given.id from outbox.event_ids as given
                        where given.created_at >= coalesce(after, '-infinity')
                          and given.created_at < at - period
                        order by given.created_at
                        limit 5000
                          for update skip locked))
            returning one.created_at
        )
        select count(*), max(old.created_at) into rows, newest from old;
    elsif what = 'dead_letters' then
        with old as (
            delete from outbox.dead_letters as one
             where one.id = any (array(
                       select letter.id from outbox.dead_letters as letter
                        where letter.died_at >= coalesce(after, '-infinity')
                          and letter.died_at < at - period
                        order by letter.died_at, letter.id
                        limit 5000
                          for update skip locked))
            returning one.died_at, one.id
        )
        select count(*), max(old.died_at), array_agg(old.id) into rows, newest, gone from old;
        perform outbox_internal.unpark(gone);
    else
        raise exception using errcode = '22023',
            message = format('what: %L is neither event_ids nor dead_letters', what);
    end if;
end;
$$;

-- For relays. They run as the owner of the outbox, and the time is now.
create function outbox_internal.make_partition(
    log text, period interval, out done text, out partition text, out problem text
)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    seen outbox.retention_periods;
begin
    select made.* into done, partition, problem
      from outbox_internal.make_partition_at(log, period, now()) as made;
    select known.* into seen from outbox.retention_periods as known
     where known.log = make_partition.log;
    if done is distinct from 'busy'
       and (seen.log is null or seen.period <> make_partition.period
            or seen.problem is distinct from make_partition.problem
            or seen.looked_at < now() - interval '50 seconds') then
        perform outbox_internal.note_period(log, period, null, now(), problem);
    end if;
end;
$$;
create function outbox_internal.drop_partition(
    log text, period interval, laggard text, out done text, out partition text, out rows bigint
)
language sql security definer set search_path = pg_catalog, pg_temp as $$
    select * from outbox_internal.drop_partition_at(log, period, laggard, now())
$$;
create function outbox_internal.delete_old(
    what text, period interval, after timestamptz, out rows bigint, out newest timestamptz
)
language sql security definer set search_path = pg_catalog, pg_temp as $$
    select outbox_internal.note_period(what, period, null, now(), null);
    select * from outbox_internal.delete_old_at(what, period, after, now())
$$;
comment on function outbox_internal.make_partition is
    'Make the next partition of a log, or do the next step towards it. Called by relays.';
comment on function outbox_internal.drop_partition is
    'Drop the oldest partition that is older than the period and that nothing is owed of. Called '
    'by relays.';
comment on function outbox_internal.delete_old is
    'Delete event_ids or dead letters that are older than the period, 5,000 at most. Called by '
    'relays.';

create view outbox.retention_status as
    select known.log, class.relname::text as partition,
           nullif(part.low, '-infinity') as "from", nullif(part.high, 'infinity') as "to",
           pg_total_relation_size(part.relation) as bytes,
           part.high + period.period as due,
           kept.since as kept_since, kept.kept_by
      from (values ('events'), ('attempts')) as known (log)
     cross join lateral outbox_internal.log_partitions(known.log) as part
      join pg_class as class on class.oid = part.relation
      left join outbox.retention_periods as period on period.log = known.log
      left join outbox.retention_kept as kept on kept.partition = class.relname
     union all
    select known.log, class.relname, null, null, pg_total_relation_size(class.oid), null,
           kept.since, kept.kept_by
      from (values ('events'), ('attempts')) as known (log)
      join pg_partitioned_table as tree
        on tree.partrelid = to_regclass('outbox.' || known.log)
      join pg_class as class on class.oid = tree.partdefid
      left join outbox.retention_kept as kept on kept.partition = class.relname
     order by 1, 4;
comment on view outbox.retention_status is
    'One row for each partition of outbox.events and outbox.attempts: the time that it covers, its '
    'size, when it is due to be dropped, and what keeps it although it is due.';

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
