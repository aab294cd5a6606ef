package router

import (
	"context"
	"time"
)

// blocking runs f with a context that ends with the request.
func (rq *request) blocking(f func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	rq.mu.Lock()
	rq.cancel = cancel
	if rq.cause != nil {
		cancel(rq.cause)
	}
	rq.mu.Unlock()
	err := f(ctx)
	rq.mu.Lock()
	rq.cancel = nil
	rq.mu.Unlock()
	cancel(nil)
	return err
}

// sleep waits for d, or until the request is interrupted.
func (rq *request) sleep(d time.Duration) error {
	return rq.blocking(func(ctx context.Context) error {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
}
