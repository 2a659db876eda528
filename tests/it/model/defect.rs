//! Defects that can be switched on in the model. Each must be found by the checker: a model that finds none
//! of them would prove nothing.

macro_rules! defects {
    ($($(#[doc = $about:literal])* $name:ident,)*) => {
        /// A mistake somebody could make in the product.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Defect { $($(#[doc = $about])* $name,)* }

        impl Defect {
            /// Every defect.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

defects! {
    /// The cursor is the highest position that was routed.
    CursorByPosition,
    /// The cursor is the end of a snapshot, without the transactions that were in progress in it.
    CursorWithoutTransactionsInProgress,
    /// A page of a window leaves out what lies below the lower bound.
    WindowSkipsLateCommits,
    /// The lower bound is said to hold from the end of the snapshot on.
    LowerBoundByEndOfSnapshot,
    /// Routing reads what is not committed.
    ReadsUncommitted,
    /// The cursor is moved without looking whether another relay has moved it.
    CursorWithoutCompareAndSet,
    /// The cursor is committed before the deliveries.
    CursorBeforeDeliveries,
    /// What was read before a crash of the server is routed after it.
    RoutesWhatWasReadBeforeACrash,
    /// Attempts begin when the routing step is sent, not when it is committed.
    SendBeforeCommit,
    /// Routing and claims are committed asynchronously.
    AsynchronousClaim,
    /// Subscriptions are matched as they were when the relay started.
    StaleSubscriptions,
    /// The organization is not compared.
    OrganizationIgnored,
    /// What is paused is owed nothing.
    PausedIsOwedNothing,
    /// What is paused is sent.
    PausedIsSent,
    /// Verdicts are written whatever the lease token is.
    NoTokenGuard,
    /// What is delivered is recorded when its attempt begins.
    SettledBeforeTheAttempt,
    /// A permit comes back with the answer, not with the commit of the verdict.
    PermitReleasedBeforeSettle,
    /// Outcomes are forgotten when the connection fails.
    OutcomesForgottenOnError,
    /// A timeout counts as delivered.
    AmbiguousIsDelivered,
    /// All of a page is settled with the first of its verdicts.
    PageSettledAsAWhole,
    /// A retry is written in a commit of its own after the one that removes the delivery.
    RetryInACommitOfItsOwn,
    /// A delivery that is tried again counts from the beginning.
    AttemptsNotCounted,
    /// Dead letters are deliveries that are deleted.
    DeadLettersForgotten,
    /// Leases are never renewed.
    LeasesNotRenewed,
    /// A lease that could not be renewed is used to its end, and longer.
    SendsWithoutLease,
    /// Ends of leases are compared with the clock of the relay's machine.
    WallClockForLeases,
    /// Pages are taken over although their lease has not ended.
    TakesOverWhatIsLeased,
    /// What is settled of a page that is taken over is sent again.
    TakeoverForgetsProgress,
    /// A page that is taken over is deleted before what is left of it is written.
    TakeoverDeletesFirst,
    /// Failures are counted, and claims that ended without a verdict are not.
    FailuresCountedInsteadOfClaims,
    /// A stop does not wait for what is in flight.
    StopCutsOff,
    /// After the connection of the doorbell was lost nothing is looked for.
    NoPollAfterReconnect,
    /// The address of a destination is not checked where it is no name.
    LiteralAddressUnchecked,
    /// Redirects are followed.
    RedirectsFollowed,
    /// The next event of a key passes when the one before is answered, not when that is committed.
    KeyGoesOnWithTheAnswer,
    /// The next event of a key passes while the one before waits for a retry.
    KeyPassesItsRetry,
    /// Several relays deliver an ordered subscription.
    OrderWithoutLease,
    /// An ordered subscription is taken over while another relay still has some of it.
    OrderOpenedTooEarly,
    /// An ordered subscription that no relay delivers is not asked for again.
    NobodyAsksAgain,
    /// After a claim in order whose answer was lost, later events of the key pass.
    ClaimInOrderForgotten,
    /// Publishers draw the position before they have the lock of the key.
    PositionBeforeKeyLock,
}
