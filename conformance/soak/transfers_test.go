package soak

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Row 7 of the goals: what takes long goes on in the process that ends, until it
// is over.
func TestLongTransfersOutliveTheirProcess(t *testing.T) {
	const restarts, each = 3, 100
	r := prepare(t, plan{life: time.Minute, drain: time.Minute})
	r.began = time.Now()
	l := &load{site: r.site, ctx: context.Background()}
	// As many streams as a connection admits, and no more: four muxes to each door.
	var muxes []*mux
	open := func(dial func(context.Context) (net.Conn, error)) *mux {
		m := &mux{s: r.site, dial: dial}
		muxes = append(muxes, m)
		return m
	}
	hbone := open(r.site.dialTLS)
	inside := func(authority string) func(context.Context) (net.Conn, error) {
		return func(ctx context.Context) (net.Conn, error) { return hbone.open(ctx, authority) }
	}
	doors := []func(context.Context) (net.Conn, error){r.site.dialEdge, inside("10.1.2.3:9080")}
	streams := []*mux{open(doors[0]), open(doors[1])}
	var transfers, ends sync.WaitGroup
	for range restarts {
		begun := sync.WaitGroup{}
		for i := range each {
			begun.Add(1)
			transfers.Go(func() {
				once := sync.OnceFunc(begun.Done)
				defer once()
				pieces := 120 + rand.N(280) // 12 to 40 s
				if err := l.transfer(i%4, doors[i/4%2], streams[i/4%2], inside("10.1.2.3:9000"), pieces, once); err != nil {
					r.ledger.fail([]string{"upload", "download", "gRPC stream", "tunnel"}[i%4], err)
				}
			})
		}
		begun.Wait()
		time.Sleep(time.Second)
		if !r.takeOver(&ends) {
			break
		}
	}
	transfers.Wait()
	for _, m := range muxes {
		m.close()
	}
	ends.Wait()
	t.Logf("%d of %d transfers across %d restarts were broken, in %s", r.ledger.failed.Load(), restarts*each, r.restarts, time.Since(r.began).Round(time.Second))
	for _, s := range r.ledger.report() {
		t.Error(s)
	}
}

// transfer is one of a kind; begun is called when it is on its way.
func (l *load) transfer(kind int, dial func(context.Context) (net.Conn, error), m *mux, echo func(context.Context) (net.Conn, error), pieces int, begun func()) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	switch id := "t-" + strconv.FormatUint(l.ids.Add(1), 36); kind {
	case 0:
		return upload(ctx, dial, id, pieces, begun)
	case 1:
		return download(ctx, dial, id, pieces, begun)
	case 2:
		return l.converse(ctx, m, pieces, transferPause, begun)
	default:
		return tell(ctx, echo, id, pieces, begun)
	}
}

func single(dial func(context.Context) (net.Conn, error)) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}}
}

// upload sends pieces slowly; the answer must be their digest.
func upload(ctx context.Context, dial func(context.Context) (net.Conn, error), id string, pieces int, begun func()) error {
	pr, pw := io.Pipe()
	sum := sha256.New()
	go func() {
		w := io.MultiWriter(pw, sum)
		for i := range pieces {
			if _, err := io.WriteString(w, piece(id, i)); err != nil {
				return
			}
			if i == 1 {
				begun()
			}
			time.Sleep(transferPause)
		}
		_ = pw.Close()
	}()
	resp, err := single(dial).Do(post(ctx, "/app/", pr, http.Header{"X-Id": {id}, "X-Long": {"upload"}}))
	if err != nil {
		_ = pr.CloseWithError(err)
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("%x", sum.Sum(nil)); resp.StatusCode != http.StatusOK || resp.Header.Get("X-Id") != id || string(b) != want {
		return fmt.Errorf("%s, %.100q", resp.Status, b)
	}
	return nil
}

// download reads what comes slowly.
func download(ctx context.Context, dial func(context.Context) (net.Conn, error), id string, pieces int, begun func()) error {
	resp, err := single(dial).Do(post(ctx, "/app/", nil, http.Header{"X-Id": {id}, "X-Long": {"download"}, "X-Pieces": {strconv.Itoa(pieces)}}))
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	for i := range pieces {
		want := piece(id, i)
		got := make([]byte, len(want))
		if n, err := io.ReadFull(resp.Body, got); err != nil || string(got) != want {
			return fmt.Errorf("%s, piece %d, after %d bytes: %w", resp.Status, i, n, err)
		}
		if i == 1 {
			begun()
		}
	}
	if n, err := io.Copy(io.Discard, resp.Body); n > 0 || err != nil {
		return fmt.Errorf("at the end: %d bytes, %w", n, err)
	}
	return nil
}

// tell sends pieces through a tunnel and reads them back.
func tell(ctx context.Context, dial func(context.Context) (net.Conn, error), id string, pieces int, begun func()) error {
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	e := &echoer{c: c}
	defer e.drop()
	for i := range pieces {
		want := piece(id, i)
		if _, err := io.WriteString(c, want); err != nil {
			return fmt.Errorf("piece %d: %w", i, err)
		}
		got := make([]byte, len(want))
		if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
			return fmt.Errorf("piece %d, after %d bytes: %w", i, n, err)
		}
		if i == 1 {
			begun()
		}
		time.Sleep(transferPause)
	}
	return e.finish()
}
