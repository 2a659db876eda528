-- What happens to subscriptions, published through the outbox itself: topics outbox.subscription.*;
-- and subscriptions that are disabled after a time without success.

-- Publish what happened to a subscription. Only the owner of the outbox may, whose functions call
-- this. A failure is a warning: what an operator does must not fail for it.
create function outbox_internal.announce(
    what         text,
    subscription text,
    organization text,
    reason       text,
    details      jsonb default '{}'
) returns uuid
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    return outbox.publish(
        topic => 'outbox.subscription.' || announce.what,
        key => announce.subscription,
        organization => announce.organization,
        source => 'pgoutbox',
        payload => jsonb_build_object(
                       'subscription', announce.subscription,
                       'organization', announce.organization,
                       'reason', announce.reason,
                       'at', clock_timestamp(),
                       'by', session_user)
                   || announce.details);
exception when others then
    raise warning 'outbox.subscription.% of % was not published: %', announce.what,
                  announce.subscription, sqlerrm;
    return null;
end;
$$;

-- What was announced of subscriptions and must not be repeated too soon. Without a foreign key: a
-- row of a subscription that somebody has locked delays nobody.
create table outbox.announcements (
    subscription_id bigint      not null,
    what            text        not null check (what in ('invalid', 'backlog')),
    at              timestamptz not null,
    reason          text,                        -- of invalid
    threshold       interval,                    -- of backlog: age of the oldest event
    cleared_at      timestamptz,                 -- of backlog; null: it is not over yet
    primary key (subscription_id, what)
);
comment on table outbox.announcements is
    'The last outbox.subscription.invalid and outbox.subscription.backlog of each subscription.';

-- Publish a change of pause or state in the transaction that makes it.
create function outbox_internal.announce_change() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    happened text[] := '{}';
    one      text;
begin
    if old.active and not new.active then
        happened := '{paused}';
    elsif new.active
          and (not old.active
               or old.state in ('gone', 'disabled') and new.state in ('pending', 'ok')) then
        happened := '{resumed}';
    end if;
    if new.state is distinct from old.state and new.state in ('invalid', 'gone', 'disabled') then
        happened := happened || new.state;
    end if;
    foreach one in array happened loop
        -- Relays may disagree about a subscription, again and again.
        if one = 'invalid' then
            insert into outbox.announcements as last (subscription_id, what, at, reason)
            values (new.id, 'invalid', clock_timestamp(), new.state_reason)
            on conflict (subscription_id, what) do update
               set at = excluded.at, reason = excluded.reason
             where last.reason is distinct from excluded.reason
                or last.at < excluded.at - interval '10 minutes';
            continue when not found;
        end if;
        perform outbox_internal.announce(
                    one, new.name, new.organization,
                    case when one in ('invalid', 'gone', 'disabled')
                           or one = 'paused' and new.state_reason like 'halted:%'
                         then new.state_reason end);
    end loop;
    return null;
end;
$$;

create trigger announce_change after update on outbox.subscriptions
    for each row
    when (old.active is distinct from new.active or old.state is distinct from new.state)
    execute function outbox_internal.announce_change();

-- Publish which backlogs have become too old, and which are no longer: a backlog is over when its
-- oldest event is younger than half of the limit, and ten minutes pass between that and the next.
create function outbox_internal.note_backlogs(
    subscriptions bigint[],
    ages          double precision[],
    threshold     double precision
) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    one       record;
    published integer := 0;
begin
    delete from outbox.announcements as last
     where not exists (select from outbox.subscriptions as subscription
                        where subscription.id = last.subscription_id);
    for one in
        select subscription.id, subscription.name, subscription.organization, measured.age
          from unnest(note_backlogs.subscriptions, note_backlogs.ages) as measured (id, age)
          join outbox.subscriptions as subscription on subscription.id = measured.id
         where measured.age >= note_backlogs.threshold
           -- otherwise it was announced why nothing is sent
           and subscription.active
           and subscription.state in ('pending', 'ok', 'invalid')
         order by subscription.id
    loop
        insert into outbox.announcements as last (subscription_id, what, at, threshold)
        values (one.id, 'backlog', clock_timestamp(),
                make_interval(secs => note_backlogs.threshold))
        on conflict (subscription_id, what) do update
           set at = excluded.at, threshold = excluded.threshold, cleared_at = null
         where last.cleared_at < excluded.at - interval '10 minutes';
        continue when not found;
        perform outbox_internal.announce(
                    'backlog', one.name, one.organization,
                    format('its oldest event has been owed for %s s', round(one.age)),
                    jsonb_build_object('state', 'over', 'oldest_age_seconds', round(one.age)));
        published := published + 1;
    end loop;
    for one in
        update outbox.announcements as last
           set cleared_at = clock_timestamp()
          from outbox.subscriptions as subscription
         where last.what = 'backlog'
           and last.cleared_at is null
           and subscription.id = last.subscription_id
           and not exists (
                   select from unnest(note_backlogs.subscriptions, note_backlogs.ages)
                               as measured (id, age)
                    where measured.id = last.subscription_id
                      and measured.age >= extract(epoch from last.threshold) / 2)
        returning subscription.name, subscription.organization
    loop
        perform outbox_internal.announce('backlog', one.name, one.organization, null,
                                         jsonb_build_object('state', 'cleared'));
        published := published + 1;
    end loop;
    return published;
end;
$$;
comment on function outbox_internal.note_backlogs is
    'Called by relays with the seconds for which the oldest event of each subscription has been '
    'owed. Publishes outbox.subscription.backlog where that became too long or is over. Returns '
    'how many.';

-- For how long subscriptions with retry.disable_after have failed, as all relays together know it.
-- It outlives relays. Only where something failed after the last success there is a row.
create table outbox.subscription_health (
    subscription_id bigint primary key,
    good_at         timestamptz,                 -- last success; or when it was changed or resumed
    failing_since   timestamptz,                 -- first failure after it
    failed_at       timestamptz                  -- last failure
) with (fillfactor = 50);
comment on table outbox.subscription_health is
    'Since when subscriptions with retry.disable_after have failed without a success.';

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
