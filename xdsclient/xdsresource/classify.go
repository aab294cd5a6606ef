package xdsresource

import "google.golang.org/protobuf/proto"

func (s *scope) classify(m proto.Message) {}
