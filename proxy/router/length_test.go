package router

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// trailed is a slowBody whose trailers can't be written.
type trailed struct{ *slowBody }

func (trailed) Trailers() *message.Header {
	h := &message.Header{}
	h.Add("x bad", "1")
	return h
}

// A filter may make a body shorter or longer than the head says. The origin, which
// waits for the rest, is not waited for, and gets nothing that is not of the message.
// Envoy's answer is that to an origin of HTTP/2, which resets such a stream; one of
// HTTP/1 it lets wait, or sends the surplus.
func TestABodyOfAnotherLengthEndsTheExchangeAtOnce(t *testing.T) {
	for _, c := range []struct {
		name, path string
		chunks     []string
		trailers   bool
		details    string
	}{
		{"too short", "/", []string{"0123456789", "x"}, false, "upstream_reset_before_response_started{protocol_error}"},
		{"empty", "/", nil, false, "upstream_reset_before_response_started{protocol_error}"},
		{"too long", "/", []string{"0123456789", "0123456789x"}, false, "upstream_reset_before_response_started{protocol_error}"},
		{"too short, with trailers", "/", []string{"0123456789"}, true, "upstream_reset_before_response_started{protocol_error}"},
		{"too short, of an answer that has begun", "/begun", []string{"0123456789", "x"}, false, "upstream_reset_after_response_started{protocol_error}"},
		{"too long, of an answer that has begun", "/begun", []string{"0123456789", "0123456789x"}, false, "upstream_reset_after_response_started{protocol_error}"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, feed := make(chan string, 1), make(chan struct{})
			w := serveReal(t, xdsresource.UpstreamHTTP1, func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/begun" {
					rc := http.NewResponseController(rw)
					_ = rc.EnableFullDuplex()
					_, _ = io.WriteString(rw, "begun")
					_ = rc.Flush()
				} else {
					close(feed)
				}
				b, _ := io.ReadAll(r.Body)
				got <- string(b)
			})
			w.action().Timeout = 0
			b := newSlowBody()
			s := newStream(message.Method, "POST", message.Path, c.path, "content-length", "20")
			if s.Body = b; c.trailers {
				s.Body = trailed{b}
			}
			go func() {
				<-feed
				for _, p := range c.chunks {
					select {
					case b.c <- p:
					case <-b.stop:
						return
					}
				}
				close(b.c)
			}()
			ended := make(chan result, 1)
			if c.path == "/begun" { // the head is here
				w.answered = func() { close(feed) }
			}
			go func() { ended <- w.do(s) }()
			var r result
			select {
			case r = <-ended:
			case <-time.After(10 * time.Second):
				t.Fatal("it waits for the origin")
			}
			if r.info.Details != c.details || r.info.Flags.String() != "UPE" {
				t.Errorf("%d %q %v, %s %s", r.status, r.body, r.bodyErr, r.info.Details, r.info.Flags)
			}
			if begun := c.path == "/begun"; !begun && r.status != 502 || begun && (r.status != 200 || r.bodyErr == nil) {
				t.Errorf("%d %q %v", r.status, r.body, r.bodyErr)
			}
			body, sent := <-got, strings.Join(c.chunks, "")
			if len(body) > 20 || body != sent[:min(len(body), len(sent))] {
				t.Errorf("the origin got %q", body)
			}
			w.idle()
		})
	}
}
