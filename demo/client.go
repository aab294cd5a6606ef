package demo

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const reviewsURL = "http://reviews.app.svc.cluster.local:9080"

// client speaks plain HTTP to the SOCKS5 port of a workload's ztunnel.
type client struct{ http http.Client }

func newClient(addr string) *client {
	return &client{http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			Proxy:               http.ProxyURL(&url.URL{Scheme: "socks5h", Host: addr + ":15080"}),
			MaxIdleConnsPerHost: 16, DisableCompression: true,
		},
	}}
}

// answer is a response with its body.
type answer struct {
	status int
	header http.Header
	body   string
}

// send makes a request that belongs to a check. Header names and values
// alternate in h. A body makes it a POST of JSON.
func (c *client) send(ctx context.Context, check, url, body string, h ...string) (*answer, error) {
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != "" {
		req.Header.Set("content-type", "application/json")
	}
	req.Header.Set(checkHeader, check)
	for i := 0; i+1 < len(h); i += 2 {
		req.Header.Set(h[i], h[i+1])
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	return &answer{resp.StatusCode, resp.Header, strings.TrimSpace(string(b))}, nil
}

func (c *client) close() { c.http.CloseIdleConnections() }
