// A blocking HTTP request over a fresh connection, for tests.
#ifndef KVIST_TESTS_SUPPORT_HTTP_FETCH_H_
#define KVIST_TESTS_SUPPORT_HTTP_FETCH_H_

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <charconv>
#include <string>
#include <string_view>

namespace kvist::test {

struct HttpAnswer {
  int status = 0;  // 0: the connection was closed without an answer
  std::string body;
  std::string whole;  // as received
};

// Sends `request` as it is to "host:port" and reads until the server closes.
inline HttpAnswer HttpSend(const std::string& address, std::string_view request) {
  namespace asio = boost::asio;
  const size_t colon = address.rfind(':');
  asio::io_context context;
  asio::ip::tcp::socket socket(context);
  boost::system::error_code error;
  socket.connect({asio::ip::make_address(address.substr(0, colon)),
                  static_cast<uint16_t>(std::stoi(address.substr(colon + 1)))},
                 error);
  HttpAnswer answer;
  if (error) return answer;
  asio::write(socket, asio::buffer(request.data(), request.size()), error);
  asio::read(socket, asio::dynamic_buffer(answer.whole), error);
  if (answer.whole.size() > 12 && answer.whole.rfind("HTTP/1.", 0) == 0) {
    std::from_chars(answer.whole.data() + 9, answer.whole.data() + 12, answer.status);
  }
  const size_t end = answer.whole.find("\r\n\r\n");
  if (end != std::string::npos) answer.body = answer.whole.substr(end + 4);
  return answer;
}

inline HttpAnswer HttpGet(const std::string& address, const std::string& target) {
  return HttpSend(address, "GET " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
}

}  // namespace kvist::test

#endif  // KVIST_TESTS_SUPPORT_HTTP_FETCH_H_
