//! A stream that does work: it yields what the work reports on the way, in order, and then how the work ended.
//!
//! The work runs while the stream is read, in the task of the call. When the caller goes away it is dropped with the
//! stream, so it is only for work that may end anywhere: reading.

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::mpsc;

/// What such a stream yields.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told<T, R> {
    /// Something on the way.
    Report(T),
    /// How it ended; the last item.
    End(R),
}

struct Working<T, R> {
    reports: mpsc::Receiver<T>,
    work: BoxFuture<'static, R>,
    end: Option<R>,
    is_over: bool,
}

/// Joins `work` with the channel that it reports to.
pub(super) fn working<T: Send + 'static, R: Send + 'static>(
    reports: mpsc::Receiver<T>,
    work: BoxFuture<'static, R>,
) -> BoxStream<'static, Told<T, R>> {
    let state = Working { reports, work, end: None, is_over: false };
    stream::unfold(state, |mut state| async {
        let told = state.next().await?;
        Some((told, state))
    })
    .boxed()
}

impl<T, R> Working<T, R> {
    async fn next(&mut self) -> Option<Told<T, R>> {
        while !self.is_over && self.end.is_none() {
            tokio::select! {
                biased;
                Some(report) = self.reports.recv() => return Some(Told::Report(report)),
                end = &mut self.work => self.end = Some(end),
            }
        }
        // What was reported before the end and not read yet comes before it.
        if let Ok(report) = self.reports.try_recv() {
            return Some(Told::Report(report));
        }
        self.is_over = true;
        self.end.take().map(Told::End)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reports_come_in_order_and_the_end_last() {
        let (sender, reports) = mpsc::channel(4);
        let work = async move {
            for number in 0..10 {
                sender.send(number).await.unwrap();
            }
            "done"
        };
        let told: Vec<_> = working(reports, Box::pin(work)).collect().await;
        let expected = (0..10).map(Told::Report).chain([Told::End("done")]);
        assert_eq!(told, expected.collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn work_that_reports_nothing_ends() {
        let (sender, reports) = mpsc::channel::<u8>(1);
        let work = async move {
            drop(sender);
            7
        };
        assert_eq!(working(reports, Box::pin(work)).collect::<Vec<_>>().await, [Told::End(7)]);
    }
}
