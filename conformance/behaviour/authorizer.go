package behaviour

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	authv3pb "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
)

// Verdict is one answer of the authorization server.
type Verdict struct {
	Delay time.Duration
	// Err answers with a gRPC status instead.
	Err      error
	Response *authv3pb.CheckResponse
}

// parseVerdicts reads an authz section: answers with "---" between, each a
// CheckResponse as JSON, after lines "delay DURATION" and "error CODE TEXT".
func parseVerdicts(text string) ([]Verdict, error) {
	var verdicts []Verdict
	for part := range strings.SplitSeq(text, "---\n") {
		v := Verdict{Response: &authv3pb.CheckResponse{}}
		doc := ""
		for line := range strings.Lines(part) {
			key, val, _ := strings.Cut(strings.TrimSpace(line), " ")
			var err error
			switch key {
			case "delay":
				v.Delay, err = time.ParseDuration(val)
			case "error":
				code, msg, _ := strings.Cut(val, " ")
				var n uint64
				n, err = strconv.ParseUint(code, 10, 8)
				v.Err = status.Error(codes.Code(n), msg)
			default:
				doc += line
			}
			if err != nil {
				return nil, err
			}
		}
		if strings.TrimSpace(doc) != "" {
			if err := protojson.Unmarshal([]byte(doc), v.Response); err != nil {
				return nil, err
			}
		}
		verdicts = append(verdicts, v)
	}
	return verdicts, nil
}

// authorizer is a gRPC server for Envoy's ext_authz protocol.
type authorizer struct {
	authv3pb.UnimplementedAuthorizationServer
	l net.Listener
	s *grpc.Server
	o *origins
}

func startAuthorizer(o *origins) (*authorizer, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	a := &authorizer{l: l, s: grpc.NewServer(), o: o}
	authv3pb.RegisterAuthorizationServer(a.s, a)
	o.wg.Go(func() { _ = a.s.Serve(l) })
	return a, nil
}

// Check implements the protocol.
func (a *authorizer) Check(ctx context.Context, q *authv3pb.CheckRequest) (*authv3pb.CheckResponse, error) {
	a.o.mu.Lock()
	rec := a.o.cur
	a.o.mu.Unlock()
	v := rec.ask(q)
	select {
	case <-time.After(v.Delay):
	case <-ctx.Done():
	}
	if v.Err != nil {
		return nil, v.Err
	}
	return v.Response, nil
}

// ask records a question and picks the answer.
func (rec *recording) ask(q *authv3pb.CheckRequest) Verdict {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	n := len(rec.asked)
	rec.asked = append(rec.asked, q)
	if len(rec.verdicts) == 0 {
		return Verdict{Response: &authv3pb.CheckResponse{}}
	}
	return rec.verdicts[min(n, len(rec.verdicts)-1)]
}

// questions returns what was asked, one field a line. What changes from run to
// run is "*".
func (rec *recording) questions(sent string) string {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if len(rec.asked) == 0 {
		return "nothing\n"
	}
	var b strings.Builder
	for n, q := range rec.asked {
		if n > 0 {
			b.WriteString("\n")
		}
		data, err := protojson.Marshal(q)
		if err != nil {
			return "not representable: " + err.Error() + "\n"
		}
		var doc map[string]any
		if err := json.Unmarshal(data, &doc); err != nil {
			return "not representable: " + err.Error() + "\n"
		}
		lines := flatten("", doc["attributes"], nil)
		slices.Sort(lines)
		for _, l := range lines {
			name, val, _ := strings.Cut(l, ": ")
			switch {
			case name == "request.time", name == "request.http.id", name == "source.address.socketAddress.portValue",
				name == "request.http.headers.x-request-id" && !strings.Contains(sent, strings.Trim(val, `"`)):
				val = "*"
			case name == "destination.address.socketAddress.portValue":
				val = ":" + val // for mask
			}
			b.WriteString(name + ": " + val + "\n")
		}
	}
	return b.String()
}

func flatten(name string, v any, lines []string) []string {
	if name != "" {
		name += "."
	}
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			lines = flatten(name+k, e, lines)
		}
		return lines
	case []any:
		for i, e := range v {
			lines = flatten(name+strconv.Itoa(i), e, lines)
		}
		return lines
	}
	data, err := json.Marshal(v)
	if err != nil {
		return append(lines, name+": "+err.Error())
	}
	return append(lines, fmt.Sprintf("%s: %s", strings.TrimSuffix(name, "."), data))
}
