package proxy_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"

	"google.golang.org/protobuf/proto"
)

// receiveOTLP is the wire side of a collector, by gRPC and by HTTP: it reads m,
// a message of signal "trace" or "logs", and answers. addressed tells whether
// the request is as it should be beside path and type.
func receiveOTLP(w http.ResponseWriter, r *http.Request, signal string, m proto.Message, addressed func(grpc bool) bool) error {
	service, path := "trace.v1.TraceService", "/v1/traces"
	if signal == "logs" {
		service, path = "logs.v1.LogsService", "/v1/logs"
	}
	b, err := io.ReadAll(r.Body)
	grpc := r.Header.Get("Content-Type") == "application/grpc"
	switch {
	case err != nil:
	case !addressed(grpc):
		err = errors.New("not addressed as it should be")
	case grpc && r.ProtoMajor == 2 && r.URL.Path == "/opentelemetry.proto.collector."+service+"/Export" && len(b) >= 5 && int(binary.BigEndian.Uint32(b[1:])) == len(b)-5:
		err = proto.Unmarshal(b[5:], m)
	case !grpc && r.URL.Path == path && r.Header.Get("Content-Type") == "application/x-protobuf":
		err = proto.Unmarshal(b, m)
	default:
		err = errors.New("no export of " + signal)
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return fmt.Errorf("%s %s %s %v: %w", r.Proto, r.Host, r.URL.Path, r.Header, err)
	}
	if grpc {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = w.Write([]byte{0, 0, 0, 0, 0})
		w.Header().Set("Grpc-Status", "0")
	}
	return nil
}
